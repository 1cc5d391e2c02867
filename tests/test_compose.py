"""docker-compose.yml: where no engine runs, each headrace container's exact command runs as a plain process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.settings import Settings
from schemas.topics import BROKER_MAX_BYTES
from services.runtime.embedded import Runtime
from services.runtime.ports import reserve
from services.runtime.processes import COMMANDS
from tests.deadline import eventually

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def runtime(home: Path) -> Iterator[Runtime]:
    with Runtime(Settings(home=home, kafka=None, redis=None), roles=()) as runtime:
        yield runtime


def plain(service: str, runtime: Runtime, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command and environment of a container; only hosts and folders that exist in containers alone are replaced."""
    here = {"kafka:9092": runtime.kafka, "redis://redis:6379/0": runtime.redis, "/data": str(folder), "/tmp/ready": str(folder / "ready"),
            "0.0.0.0": "127.0.0.1", "8080": str(reserve(folder, ("api",))["api"])}
    environment = {name: here[value] for name, value in SERVICES[service]["environment"].items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"  # `python` and `headrace`, as in the image
    return SERVICES[service]["command"], {**inherited, **environment, "PATH": path}


def test_the_topics_container_creates_the_catalogue_and_ends(runtime: Runtime, tmp_path: Path) -> None:
    command, environment = plain("topics", runtime, tmp_path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "transactions.valid" in done.stdout


@pytest.mark.parametrize("service", ["worker", "loop", "scorer", "reasons", "shadow", "runner", "guard", "compactor", "api"])
def test_a_container_becomes_ready_and_stops_on_sigterm(service: str, runtime: Runtime, tmp_path: Path) -> None:
    command, environment = plain(service, runtime, tmp_path)
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=output, stderr=output) as process:
        try:
            def ready() -> bool:
                assert process.poll() is None, log.read_text()[-2000:]
                file = Path(environment["HEADRACE_READY_FILE"])
                return file.exists() and file.read_text() == str(process.pid)

            assert eventually(ready)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0, log.read_text()[-2000:]
        finally:
            process.kill()


def test_containers_run_what_up_runs() -> None:
    for role, command in COMMANDS.items():
        assert SERVICES[role]["command"] == ["python", *command[1:]]


def test_containers_of_headrace_use_only_known_settings() -> None:
    known = {f"HEADRACE_{name.upper()}" for name in Settings.model_fields}
    ours = [name for name, service in SERVICES.items() if service["image"] == "headrace"]
    assert ours == ["topics", "worker", "loop", "scorer", "reasons", "shadow", "runner", "guard", "compactor", "api"]
    assert set().union(*(SERVICES[name]["environment"] for name in ours)) <= known


def test_the_broker_and_the_store_are_set_as_the_embedded_ones_are(runtime: Runtime, home: Path) -> None:
    properties = dict(line.split("=", 1) for line in (home / "kafka/server.properties").read_text().splitlines())
    environment = SERVICES["kafka"]["environment"]
    for name in ("auto.create.topics.enable", "message.max.bytes", "replica.fetch.max.bytes", "group.initial.rebalance.delay.ms"):
        assert environment["KAFKA_" + name.upper().replace(".", "_")] == properties[name]
    assert properties["message.max.bytes"] == str(BROKER_MAX_BYTES)
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
