"""The embedded runtime, on real children: what it starts it watches, and nothing outlives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from confluent_kafka import Consumer, Message, Producer
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import LogError, RuntimeFault
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings, read_settings
from schemas.topics import catalogue
from services.runtime import backoff, tether
from services.runtime.embedded import Runtime
from services.runtime.endpoints import Endpoints, endpoints
from services.runtime.home import claim, holder, running
from services.runtime.kafka import answers
from services.runtime.ports import reserve
from services.runtime.processes import own_processes
from services.runtime.redis import server_pid
from services.runtime.supervisor import Process, Supervisor
from services.runtime.topics import create_topics
from tests.deadline import eventually


def gone(pid: int | None) -> bool:
    """Ended; a zombie has, too: where nobody reaps orphans their entry stays."""
    try:
        return pid is None or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def publish(kafka: str, value: bytes) -> None:
    failures: list[Any] = []
    producer = Producer({"bootstrap.servers": kafka, "acks": "all", "message.max.bytes": 8 << 20})
    producer.produce(TRANSACTIONS, value, partition=0, on_delivery=lambda error, _: failures.append(error))
    assert producer.flush(20) == 0
    assert failures == [None]


def first_value(kafka: str) -> bytes:
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "test", "auto.offset.reset": "earliest"})
    consumer.subscribe([TRANSACTIONS])

    def heard() -> Message | None:
        message = consumer.poll(1.0)
        return message if message is not None and not message.error() else None

    try:
        value = eventually(heard).value()
        assert value is not None
        return value
    finally:
        consumer.close()


def test_kafka_and_redis_are_up_with_the_catalogues_topics_and_take_large_values(tmp_path: Path) -> None:
    settings, began = Settings(home=tmp_path, kafka=None, redis=None), time.monotonic()
    with Runtime(settings, roles=()) as runtime:
        print(f"first up after {time.monotonic() - began:.1f} s")
        assert answers(runtime.kafka, 30.0)
        assert server_pid(runtime.redis, 30.0) == runtime.pid("redis")
        assert endpoints(settings) == runtime.endpoints
        assert create_topics(runtime.kafka, catalogue(settings)) == []
        publish(runtime.kafka, b"x" * (5 << 20))
        first = runtime.endpoints
    began = time.monotonic()
    with Runtime(settings, roles=()) as runtime:
        print(f"next up after {time.monotonic() - began:.1f} s")
        assert runtime.endpoints == first
        assert first_value(runtime.kafka) == b"x" * (5 << 20)
    assert holder(tmp_path) is None
    with pytest.raises(RuntimeFault, match="does not run"):
        endpoints(settings)


def test_a_topic_that_differs_from_the_catalogue_is_refused_by_name(runtime: Runtime) -> None:
    with pytest.raises(LogError, match=r"topic \S+ exists with partitions 4 \(catalogue: 3\)"):
        create_topics(runtime.kafka, catalogue(Settings(partitions=3)))
    with pytest.raises(LogError, match=r"message\.timestamp\.type"):
        create_topics(runtime.kafka, catalogue(Settings(time="replay")))


def test_a_killed_redis_is_back_on_its_port_with_its_data(runtime: Runtime) -> None:
    with redis.Redis.from_url(runtime.redis, socket_timeout=60) as client:
        for number in range(1000):
            client.append("key", number.to_bytes(2, "big"))
        eventually(lambda: client.info("persistence")["aof_buffer_length"] == 0)  # held back while the disk is slow to sync
        killed = runtime.pid("redis")
        assert killed
        os.kill(killed, signal.SIGKILL)
        back = eventually(lambda: runtime.pid("redis") not in (killed, None) and server_pid(runtime.redis, 1.0))
        assert back == runtime.pid("redis")
        assert client.strlen("key") == 2000
    restarts = {process.name: process.restarts for process in runtime.state.processes}
    assert restarts == {"redis": 1, "kafka": 0}


def test_a_killed_kafka_is_back_on_its_port_with_its_data(runtime: Runtime) -> None:
    publish(runtime.kafka, b"before")
    killed = runtime.pid("kafka")
    assert killed
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: runtime.pid("kafka") not in (killed, None) and answers(runtime.kafka, 1.0))
    assert first_value(runtime.kafka) == b"before"


def test_a_held_child_stays_down_until_it_is_released(runtime: Runtime) -> None:
    runtime.hold("redis")
    assert runtime.pid("redis") is None
    assert server_pid(runtime.redis, 0.2) is None
    runtime.release("redis")
    assert server_pid(runtime.redis, 30.0) == runtime.pid("redis")


@contextmanager
def up(home: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "services.cli", "up", "--engines-only", "--json"]
    with subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def environment(home: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_") or name == "HEADRACE_CACHE"}
    return {**ours, "HEADRACE_HOME": str(home)}


def children_once_up(home: Path, process: subprocess.Popen[str]) -> list[int]:
    def pids() -> list[int]:
        assert process.poll() is None
        state = running(home)
        return [child.pid for child in state.processes if child.pid] if state and state.state == "up" else []

    return eventually(pids)


def test_a_second_up_is_refused_and_sigterm_stops_the_first_cleanly(tmp_path: Path) -> None:
    with up(tmp_path) as first:
        children = children_once_up(tmp_path, first)
        second = subprocess.run([sys.executable, "-m", "services.cli", "up", "--json"], env=environment(tmp_path), capture_output=True,
                                text=True, timeout=120, check=False)
        assert second.returncode == RuntimeFault.exit_code
        assert f"process {first.pid}" in json.loads(second.stderr)["error"]
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=120)
        assert first.returncode == 0
        assert json.loads(said)["state"] == "up"
        assert len(children) == 2
        assert all(map(gone, children))


def test_no_child_outlives_a_killed_parent_and_the_next_up_goes_on(tmp_path: Path) -> None:
    with up(tmp_path) as parent:
        children = children_once_up(tmp_path, parent)
        parent.kill()
        parent.wait()
    assert len(children) == 2
    eventually(lambda: all(map(gone, children)))
    assert holder(tmp_path) is None
    with up(tmp_path) as again:
        assert len(children_once_up(tmp_path, again)) == 2
        down = subprocess.run([sys.executable, "-m", "services.cli", "down"], env=environment(tmp_path), capture_output=True,
                              text=True, timeout=60, check=False)
        assert down.returncode == 0
        assert down.stdout.startswith("stopped in")
        assert again.wait(60) == 0


def test_a_command_whose_parent_is_gone_already_does_not_start() -> None:
    run = subprocess.run([sys.executable, tether.__file__, "1", "echo", "started"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "logs", lambda states: None)
    yield supervisor
    supervisor.stop()


def shell(name: str, script: str, **more: Any) -> Process:
    return Process(name, ("/bin/sh", "-c", script), more.pop("healthy", lambda pid: True), **more)


def test_a_child_that_cannot_start_is_given_up_with_the_end_of_its_log(supervisor: Supervisor) -> None:
    with pytest.raises(RuntimeFault, match=r"broken does not start; its log ends with: .*no such flag"):
        supervisor.start([shell("broken", "echo no such flag; exit 3", healthy=lambda pid: False)])


def test_a_child_that_does_not_answer_in_time_is_given_up(supervisor: Supervisor) -> None:
    with pytest.raises(RuntimeFault, match="mute does not start"):
        supervisor.start([shell("mute", "exec sleep 60", healthy=lambda pid: False, start_s=0.2)])


def test_a_child_that_ignores_sigterm_is_killed_after_its_bound(supervisor: Supervisor, tmp_path: Path) -> None:
    deaf = "trap '' TERM; touch deaf; while :; do sleep 1; done"
    supervisor.start([shell("deaf", f"cd {tmp_path}; {deaf}", healthy=lambda pid: (tmp_path / "deaf").exists(), stop_s=0.5)])
    pid = supervisor.states()[0].pid
    began = time.monotonic()
    supervisor.stop()
    assert 0.5 <= time.monotonic() - began < 3
    assert gone(pid)


def test_stages_stop_in_reverse_order(supervisor: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "order"
    for name in ("first", "second"):
        script = f"trap 'echo {name} >> {log}; exit' TERM; touch {log}.{name}; while :; do sleep 0.05; done"
        supervisor.start([shell(name, script, healthy=lambda pid, name=name: Path(f"{log}.{name}").exists())])
    supervisor.stop()
    assert log.read_text().split() == ["second", "first"]


@given(st.integers(1, 1000), st.floats(0, 100))
def test_the_pause_before_a_restart_grows_to_a_bound_and_health_resets_it(failures: int, healthy_s: float) -> None:
    assert backoff.FIRST_S <= backoff.delay_s(failures) <= backoff.delay_s(failures + 1) <= backoff.LONGEST_S
    after = backoff.failures_after(failures, healthy_s)
    assert after == (1 if healthy_s >= backoff.SETTLED_S else failures + 1)
    assert backoff.delay_s(1) == backoff.FIRST_S


def test_ports_are_kept_unless_somebody_took_them(tmp_path: Path) -> None:
    first = reserve(tmp_path, ("kafka", "redis"))
    assert reserve(tmp_path, ("kafka", "redis")) == first
    with socket.create_server(("127.0.0.1", first["kafka"])):
        second = reserve(tmp_path, ("kafka", "redis"))
    assert second["redis"] == first["redis"]
    assert second["kafka"] not in first.values()


def test_the_claim_of_a_home_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(RuntimeFault, match=f"as process {os.getpid()}"), claim(tmp_path):
        pass
    with claim(tmp_path):
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None


def test_our_processes_get_every_setting_in_their_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, workers=2, time="replay")
    processes = own_processes(settings, Endpoints("broker:1", "redis://:secret@host:1/0"))
    assert [process.name for process in processes] == \
        ["worker-1", "worker-2", "loop", "scorer", "reasons", "shadow", "runner", "guard", "api"]
    for name, value in processes[1].env.items():
        monkeypatch.setenv(name, value)
    told = read_settings()
    assert (told.kafka, told.time, told.ready_file) == ("broker:1", "replay", tmp_path / "ready" / "worker-2")
    assert told.redis is not None
    assert told.redis.get_secret_value() == "redis://:secret@host:1/0"
    assert "secret" not in repr(Endpoints("broker:1", "redis://:secret@host:1/0"))
