"""Scores over HTTP: requests a second flat out, latency at a paced rate; beside it what serves features alone, or a model alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
import psutil

from feature_repo.fraud import SERVICE, USE_CASE, VIEWS
from feature_repo.marks import Progress
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings
from services.events import Encoder
from services.inputs import event_rows
from services.ledger import end_offsets
from services.paced import in_order_of_arrival
from services.publisher import Publisher
from services.runtime.embedded import Runtime
from services.runtime.ports import reserve
from services.runtime.processes import own_processes
from services.timeline import Timeline
from services.world import World
from tests.bench.feast_stock import ENTITIES, filled_store
from tests.bench.http_baselines import PATHS, save_model, server
from tests.bench.http_load import Job, Seen, run_load
from tests.bench.load import START_MS
from tests.bench.model import promote_noise
from tests.bench.report import Figure
from tests.deadline import eventually

__all__ = ["measure"]

RATE = 1_000
CONNECTIONS, CLOSED = 16, 64
BUSY_POLL_MS = 3
DAYS_BEFORE = 3
CARDS = 10_000
BODIES = 5_000


def measure(settings: Settings, seconds: float, tell: Callable[[str], None]) -> list[Figure]:
    """Three days of a world are applied first, so that every card has a history; then events of the fourth are asked about."""
    world = World(seed=9, cards=CARDS, terminals=CARDS // 3, start_ms=START_MS)
    fitted = promote_noise(settings.models)
    with Runtime(settings, ("worker",), tell) as runtime:
        tell(f"applying {DAYS_BEFORE} days of {CARDS:,} cards")
        topics = [emission.topic for emission in USE_CASE.emissions]
        publisher, timeline = Publisher(runtime.kafka, topics), Timeline(map(event_rows, world.days(DAYS_BEFORE)), USE_CASE.emissions)
        publisher.send(in_order_of_arrival(timeline, {topic: Encoder(topic, "/bench") for topic in topics}))
        publisher.flush()
        _applied(runtime)
        runtime.hold("worker-1")
        engines, events = [runtime.pid("kafka") or 0, runtime.pid("redis") or 0], _events(world)
        tell(f"scores at {RATE:,}/s by an API that sleeps between requests, which also warms up the broker")
        with _api(settings, runtime, 0) as (pid, port, headers), _apart(pid, engines):
            asleep = run_load(Job("127.0.0.1", port, "/v1/score", headers, events, seconds, CONNECTIONS, RATE, warm_s=2.0))
        with _api(settings, runtime, BUSY_POLL_MS) as (pid, port, headers), _apart(pid, engines):
            tell(f"by one that stays awake: flat out, then {RATE:,}/s")
            before = _cpu_s(pid)
            flat = run_load(Job("127.0.0.1", port, "/v1/score", headers, events, seconds / 2, CLOSED, warm_s=0.0))
            cpu_us = (_cpu_s(pid) - before) / flat.requests * 1e6
            paced = run_load(Job("127.0.0.1", port, "/v1/score", headers, events, seconds, CONNECTIONS, RATE, warm_s=2.0))
        tell(f"the same load, {RATE:,}/s, on what answers at once")
        port = reserve(settings.home, ("echo",))["echo"]
        with server("echo", port, settings.home, runtime.redis) as pid, _apart(pid, engines):
            echo = run_load(Job("127.0.0.1", port, PATHS["echo"], headers, events, seconds / 2, CONNECTIONS, RATE))
        beside = {name: _baseline(name, settings, runtime.redis, seconds / 2, tell, fitted) for name in ("feast", "mlflow")}
    assert {*paced.statuses, *asleep.statuses, *flat.statuses, *echo.statuses} == {"200"}, "a figure of refusals is none"
    detail = {name: asdict(seen) for name, seen in {"paced": paced, "asleep": asleep, "closed": flat, "echo": echo, **beside}.items()}
    feast, mlflow = beside["feast"], beside["mlflow"]
    return [
        Figure("api", f"p50 at {RATE:,} requests/s, busy polling", paced.p50_ms, "ms", 0.6, at_most=True, detail=detail),
        Figure("api", f"p99 at {RATE:,} requests/s, busy polling", paced.p99_ms, "ms", 2, at_most=True, detail=detail),
        Figure("api", f"p50 at {RATE:,} requests/s, asleep between them", asleep.p50_ms, "ms", detail=detail),
        Figure("api", f"p99 at {RATE:,} requests/s, asleep between them", asleep.p99_ms, "ms", detail=detail),
        Figure("api", f"p50 at {RATE:,} requests/s of a server that answers at once", echo.p50_ms, "ms", detail=detail),
        Figure("api", f"p99 at {RATE:,} requests/s of a server that answers at once", echo.p99_ms, "ms", detail=detail),
        Figure("api", "CPU of the process per request, flat out", cpu_us, "us", detail=detail),
        Figure("api", f"requests/s, {CLOSED} clients", flat.per_s, "/s", 6_000, detail=detail,
               baseline="Feast's feature server, features alone", ratio=flat.per_s / feast.per_s),
        Figure("api", f"requests/s, {CLOSED} clients", flat.per_s, "/s", detail=detail,
               baseline="MLflow's model server, model alone", ratio=flat.per_s / mlflow.per_s)]


@contextmanager
def _api(settings: Settings, runtime: Runtime, busy_poll_ms: int) -> Iterator[tuple[int, int, dict[str, str]]]:
    """Its pid, its port, and headers with a key that may do everything."""
    chosen = settings.model_copy(update={"api_busy_poll_ms": busy_poll_ms, "api_port": reserve(settings.home, ("api",))["api"]})
    (process,) = own_processes(chosen, runtime.endpoints, ("api",))
    with (settings.home / "api.log").open("ab") as log, \
            subprocess.Popen(process.argv, env={**os.environ, **process.env}, stdout=log, stderr=log) as api:
        try:
            eventually(lambda: api.poll() is not None or process.healthy(api.pid), timeout_s=process.start_s)
            assert api.poll() is None, f"the API ended with {api.returncode}"
            key = (settings.api / "admin.key").read_text().strip()
            yield api.pid, chosen.api_port, {"authorization": f"Bearer {key}"}
        finally:
            api.terminate()


def _baseline(name: str, settings: Settings, redis: str, seconds: float, tell: Callable[[str], None], fitted: object) -> Seen:
    tell(f"beside it: {name}")
    folder = settings.home / "baselines" / name
    port, r = reserve(settings.home, (name,))[name], np.random.default_rng(2)
    if name == "feast":
        folder.mkdir(parents=True)
        filled_store(folder, redis)
        bodies = [json.dumps({"feature_service": SERVICE.name, "entities": {"card_id": [str(card)], "terminal_id": [str(terminal)]}})
                  for card, terminal in r.integers(0, ENTITIES, (1000, 2)).tolist()]
    else:
        save_model(fitted, folder)
        bodies = [json.dumps({"inputs": [row]}) for row in r.gamma(1.0, 20.0, (1000, len(SERVICE.feature_names))).tolist()]
    with server(name, port, folder, redis) as pid, _apart(pid):
        seen = run_load(Job("127.0.0.1", port, PATHS[name], {}, bodies, seconds, CONNECTIONS))
    assert set(seen.statuses) == {"200"}
    return seen


def _events(world: World) -> list[str]:
    """Those of the day after those that are applied, each card with its own history."""
    rows = event_rows(world.day(DAYS_BEFORE)).slice(0, BODIES)
    encoder = Encoder(TRANSACTIONS, "/bench")
    timeline = Timeline([rows], USE_CASE.emissions)
    taken = [record.value for record in in_order_of_arrival(timeline, {TRANSACTIONS: encoder}) if record.topic == TRANSACTIONS]
    return [msgspec.json.encode(msgspec.json.decode(value)).decode() for value in taken]


def _cpu_s(pid: int) -> float:
    """Of all its threads: what others on the machine take does not count."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@contextmanager
def _apart(pid: int, beside: Iterable[int] = ()) -> Iterator[None]:
    """The server on one core; on the other its client, which is started from here, and ``beside``: the engines that it asks."""
    cores = sorted(os.sched_getaffinity(0))
    _pin(pid, cores[:1])
    for other in (*beside, os.getpid()):
        _pin(other, cores[-1:])
    try:
        yield
    finally:
        for other in (*beside, os.getpid()):
            _pin(other, cores)


def _pin(pid: int, cores: list[int]) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that has ended meanwhile
            os.sched_setaffinity(int(task.name), cores)


def _applied(runtime: Runtime) -> None:
    progress = Progress(runtime.redis, VIEWS, [])
    ends = {partition: high - 1 for partition, (_, high) in end_offsets(runtime.kafka, TRANSACTIONS).items() if high}
    eventually(lambda: progress.reached(TRANSACTIONS) == ends, timeout_s=300)
    progress.close()
