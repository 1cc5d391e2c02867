"""Load over HTTP/1.1 from a process of its own: an open loop, each request due at its time however slow the answers, or a closed one.

One thread waits for sockets and for a timer of the kernel: a thread that sleeps would be woken later, and would hand over to another
one first, and the server would be charged with both. ``python -m tests.bench.http_load`` reads a JSON job from standard input and prints
what it saw; ``run_load`` does both.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

import numpy as np

__all__ = ["Job", "Seen", "run_load"]

READ_BYTES = 1 << 16
POLL_S = 0.5
TFD_TIMER_ABSTIME = 1
@dataclass(frozen=True)
class Job:
    """``bodies`` are sent in turn. ``rate`` 0: a closed loop, one request under way on each connection.

    ``linger_s``: so long what was sent before the end is waited for.
    """

    host: str
    port: int
    path: str
    headers: dict[str, str]
    bodies: list[str]
    seconds: float
    connections: int
    rate: float = 0.0
    warm_s: float = 1.0
    linger_s: float = 0.5


@dataclass
class Seen:
    """Latency is from the time at which a request was due (open loop) or sent (closed loop) to the end of its answer.

    ``late_ms`` is how late the client itself was with half of what was due, waiting for a free connection included: it is in the others.
    """

    requests: int = 0
    seconds: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    worst_ms: float = 0.0
    late_ms: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


def run_load(job: Job) -> Seen:
    """Raises CalledProcessError when the client fails."""
    done = subprocess.run([sys.executable, "-m", "tests.bench.http_load"], input=json.dumps(asdict(job)), text=True,
                          stdout=subprocess.PIPE, check=True)
    return Seen(**json.loads(done.stdout))


class Connection:
    """One connection; requests on it are sent one after another, those that are due meanwhile wait, and their time counts."""

    def __init__(self, load: Load, job: Job) -> None:
        self._load = load
        self._socket = socket.create_connection((job.host, job.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._due: deque[float] = deque()
        self._data = b""
        self.busy_since: float | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unanswered(self) -> list[float]:
        return [*(() if self.busy_since is None else (self.busy_since,)), *self._due]

    def send(self, due: float) -> None:
        self._due.append(due)
        if self.busy_since is None:
            self._send()

    def readable(self) -> None:
        """Raises OSError where the server has closed it."""
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError("the server has closed the connection")
        self._data += data
        head, gap, body = self._data.partition(b"\r\n\r\n")
        if not gap or len(body) < _length(head):
            return
        due, self._data, self.busy_since = self.busy_since, b"", None
        assert due is not None
        self._load.answered(head[9:12].decode(), due)
        if self._due:
            self._send()

    def _send(self) -> None:
        self.busy_since = self._due.popleft()
        self._load.sent(self.busy_since)
        self._socket.sendall(self._load.next_request())


class Load:
    def __init__(self, job: Job) -> None:
        self._job = job
        head = "".join(f"{name}: {value}\r\n" for name, value in {"host": "localhost", "content-type": "application/json",
                                                                  **job.headers}.items())
        self._requests = [f"POST {job.path} HTTP/1.1\r\n{head}content-length: {len(body.encode())}\r\n\r\n{body}".encode()
                          for body in job.bodies]
        self._at = 0
        self._latencies: list[float] = []
        self._lateness: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._counts_from = 0.0

    def next_request(self) -> bytes:
        self._at += 1
        return self._requests[self._at % len(self._requests)]

    def sent(self, due: float) -> None:
        if due >= self._counts_from:
            self._lateness.append(time.perf_counter() - due)

    def answered(self, status: str, due: float) -> None:
        if due >= self._counts_from:
            self._latencies.append(time.perf_counter() - due)
            self._statuses[status] += 1

    def run(self) -> Seen:
        job = self._job
        connections = [Connection(self, job) for _ in range(job.connections)]
        began = time.perf_counter()
        self._counts_from = began + job.warm_s
        end = self._counts_from + job.seconds
        self._drive(connections, began, end)
        seconds = min(time.perf_counter(), end) - self._counts_from
        for due in (due for connection in connections for due in connection.unanswered):
            self.answered("lost", due)
        milliseconds = np.array(self._latencies) * 1000
        p50, p99, worst = np.percentile(milliseconds, [50, 99, 100]).tolist() if len(milliseconds) else (0.0, 0.0, 0.0)
        late = float(np.median(self._lateness)) * 1000 if self._lateness else 0.0
        return Seen(len(milliseconds), seconds, p50, p99, worst, late, dict(self._statuses))

    def _drive(self, connections: list[Connection], began: float, end: float) -> None:
        """Send what is due and take what is answered, until all is answered that was due before ``end``."""
        rate, number = self._job.rate, 0
        with select.epoll() as poll, _ticking(rate, began) as timer:
            by_file = {connection.fileno(): connection for connection in connections}
            for file in (*by_file, *((timer,) if rate else ())):
                poll.register(file, select.EPOLLIN)
            for connection in connections if not rate else ():
                connection.send(time.perf_counter())
            while (now := time.perf_counter()) < end or (by_file and now < end + self._job.linger_s and any(
                    connection.busy_since is not None for connection in by_file.values())):
                while rate and (due := began + number / rate) <= now and due < end:
                    connections[number % len(connections)].send(due)
                    number += 1
                for file, _ in poll.poll(POLL_S):
                    if file == timer:
                        os.read(timer, 8)
                        continue
                    connection = by_file[file]
                    try:
                        connection.readable()
                    except OSError:
                        poll.unregister(file)
                        del by_file[file]
                        continue
                    if not rate and connection.busy_since is None and (now := time.perf_counter()) < end:
                        connection.send(now)


@contextmanager
def _ticking(rate: float, began: float) -> Iterator[int]:
    """A file that is readable whenever the next request is due (timerfd; Python has it from 3.13 on); -1 for a closed loop."""
    if not rate:
        yield -1
        return
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(time.CLOCK_MONOTONIC, 0)
    every = (ctypes.c_long * 4)(*divmod(round(1e9 / rate), 10**9), *divmod(round(began * 1e9), 10**9))
    if timer < 0 or libc.timerfd_settime(timer, TFD_TIMER_ABSTIME, every, None):  # perf_counter is the monotonic clock
        raise OSError(ctypes.get_errno(), "no timer")
    try:
        yield timer
    finally:
        os.close(timer)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def main() -> None:
    load = Load(Job(**json.load(sys.stdin)))
    with suppress(PermissionError):
        os.nice(-10)  # nobody else on its core is to make the server look slow
    gc.freeze()
    gc.disable()
    print(json.dumps(asdict(load.run())))


if __name__ == "__main__":
    main()
