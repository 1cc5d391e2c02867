"""Load over HTTP/1.1 from a process of its own: an open loop, each request due at its time however slow the answers, or a closed one.

``python -m tests.bench.http_load`` reads a JSON job from standard input and prints what it saw; ``run_load`` does both.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field

import numpy as np

__all__ = ["Job", "Seen", "run_load"]


@dataclass(frozen=True)
class Job:
    """``bodies`` are sent in turn. ``rate`` 0: a closed loop, one request under way on each connection."""

    host: str
    port: int
    path: str
    headers: dict[str, str]
    bodies: list[str]
    seconds: float
    connections: int
    rate: float = 0.0
    warm_s: float = 1.0


@dataclass
class Seen:
    """Latency is from the time at which a request was due (open loop) or sent (closed loop) to the end of its answer."""

    requests: int = 0
    seconds: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    worst_ms: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


def run_load(job: Job) -> Seen:
    """Raises CalledProcessError when the client fails."""
    done = subprocess.run([sys.executable, "-m", "tests.bench.http_load"], input=json.dumps(asdict(job)), text=True,
                          stdout=subprocess.PIPE, check=True)
    return Seen(**json.loads(done.stdout))


class Connection(asyncio.Protocol):
    """One connection; requests on it are sent one after another, those that are due meanwhile wait, and their time counts."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self._due: deque[float] = deque()
        self._sent_at = 0.0
        self._data = b""
        self._busy = False

    def send(self, due: float) -> None:
        self._due.append(due)
        if not self._busy:
            self._send()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, gap, body = self._data.partition(b"\r\n\r\n")
        if not gap or len(body) < _length(head):
            return
        self._load.answered(head[9:12].decode(), self._sent_at)
        self._data, self._busy = b"", False
        if self._due:
            self._send()
        elif self._load.closed_loop and not self._load.over:
            self.send(time.perf_counter())

    def connection_lost(self, error: Exception | None) -> None:
        if self._busy:
            self._load.answered("lost", self._sent_at)

    def _send(self) -> None:
        self._busy, self._sent_at = True, self._due.popleft()
        self.transport.write(self._load.next_request())


class Load:
    def __init__(self, job: Job) -> None:
        self._job = job
        head = "".join(f"{name}: {value}\r\n" for name, value in {"host": "localhost", "content-type": "application/json",
                                                                  **job.headers}.items())
        self._requests = [f"POST {job.path} HTTP/1.1\r\n{head}content-length: {len(body.encode())}\r\n\r\n{body}".encode()
                          for body in job.bodies]
        self._at = 0
        self._latencies: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._counts_from = 0.0
        self.closed_loop, self.over = job.rate == 0, False

    def next_request(self) -> bytes:
        self._at += 1
        return self._requests[self._at % len(self._requests)]

    def answered(self, status: str, due: float) -> None:
        if due >= self._counts_from:
            self._latencies.append(time.perf_counter() - due)
            self._statuses[status] += 1

    async def run(self) -> Seen:
        loop, job = asyncio.get_running_loop(), self._job
        connections = []
        for _ in range(job.connections):
            transport, connection = await loop.create_connection(lambda: Connection(self), job.host, job.port)
            connection.transport = transport
            connections.append(connection)
        began = time.perf_counter()
        self._counts_from = began + job.warm_s
        end = self._counts_from + job.seconds
        if self.closed_loop:
            for connection in connections:
                connection.send(time.perf_counter())
            await asyncio.sleep(end - time.perf_counter())
        else:
            await self._pace(connections, began, end)
        self.over = True
        seconds = time.perf_counter() - self._counts_from
        await asyncio.sleep(0.5)
        milliseconds = np.array(self._latencies) * 1000
        p50, p99, worst = np.percentile(milliseconds, [50, 99, 100]).tolist() if len(milliseconds) else (0.0, 0.0, 0.0)
        return Seen(len(milliseconds), seconds, p50, p99, worst, dict(self._statuses))

    async def _pace(self, connections: list[Connection], began: float, end: float) -> None:
        """A thread sleeps from one due time to the next: the loop's own timers are of milliseconds, and spinning would take a core."""
        loop = asyncio.get_running_loop()

        def pace() -> None:
            number, period = 0, 1 / self._job.rate
            while (due := began + number * period) < end:
                if (early := due - time.perf_counter()) > 0:
                    time.sleep(early)
                loop.call_soon_threadsafe(connections[number % len(connections)].send, due)
                number += 1

        await asyncio.to_thread(pace)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def main() -> None:
    import uvloop

    job = Job(**json.load(sys.stdin))
    print(json.dumps(asdict(uvloop.run(Load(job).run()))))


if __name__ == "__main__":
    main()
