"""Kafka and Redis for every test: containers where Docker answers, the embedded runtime where it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck
from hypothesis import settings as examples

from jobs.spark import session, session_options
from schemas.settings import Settings
from schemas.topics import catalogue
from services.runtime import ports
from services.runtime.embedded import Runtime
from services.runtime.endpoints import Endpoints
from services.runtime.kafka import answers
from services.runtime.ports import reserve
from services.runtime.redis import server_pid
from services.runtime.topics import create_topics
from tests.appended_bronze import small_appends
from tests.deadline import eventually

ROOT = Path(__file__).parents[1]
LONGEST = ("test_real_data", "test_churn", "test_gameday", "test_loop_history", "test_erase", "test_maintain", "test_concurrent_writers",
           "test_reverse_shadow", "test_backfill_faults", "test_faults")
"""Begun first, so that no worker of a parallel run has to be waited for at the end."""

# Nearly every Java here is asked for little: what its second compiler makes would not pay for itself, and takes half of its processor
# time. With one compiler stock is 48 MB for compiled code, which a session of Spark fills.
ONE_COMPILER = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
os.environ.setdefault("JDK_JAVA_OPTIONS", ONE_COMPILER)

# An example takes as long as the machine lets it: what is slow here is no finding.
examples.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
examples.load_profile("untimed")

# A port is chosen seconds before a broker listens there: workers of a parallel run choose from ranges of their own.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
RANGE = (ports.HIGHEST - ports.LOWEST) // WORKERS
ports.LOWEST += int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) * RANGE
ports.HIGHEST = ports.LOWEST + RANGE


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """One Kafka, with the catalogue's topics, and one Redis for the whole run."""
    home = tmp_path_factory.mktemp("engines")
    if docker_answers():
        with containers(home) as at:
            create_topics(at.kafka, catalogue(Settings(home=home)))
            yield at
    else:
        with Runtime(Settings(home=home, kafka=None, redis=None), roles=()) as runtime:
            yield runtime.endpoints


@pytest.fixture(scope="session")
def kafka(engines: Endpoints) -> str:
    """Bootstrap servers."""
    return engines.kafka


@pytest.fixture(scope="session")
def redis_url(engines: Endpoints) -> str:
    return engines.redis


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Spark session for every module that asks for it. Those run last: a process has one at a time, and others start their own."""
    with session(Settings(home=tmp_path_factory.mktemp("spark")), "tests") as spark:
        spark.conf.set("spark.sql.shuffle.partitions", "4")  # of a handful of rows; each is a task, and thousands of tasks are minutes
        # Nor is code made for them, which took a third of a parity's time; see ``generated_code``.
        spark.conf.set("spark.sql.codegen.wholeStage", "false")
        spark.conf.set("spark.sql.codegen.factoryMode", "NO_CODEGEN")
        yield spark


@pytest.fixture(scope="module")
def generated_code(spark: Any) -> Iterator[None]:
    """Spark as it is in use, for a module whose jobs no test runs in a session of their own."""
    with session_options(spark, {"spark.sql.codegen.wholeStage": "true", "spark.sql.codegen.factoryMode": "FALLBACK"}):
        yield


@pytest.fixture(scope="module")
def both_compilers() -> Iterator[None]:
    """Java as it is in use, for a module whose Java works long enough: Spark over a million records is twice as fast with it."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["JDK_JAVA_OPTIONS"] == ONE_COMPILER:
            patch.delenv("JDK_JAVA_OPTIONS")
        yield


@pytest.fixture(scope="session")
def appended(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An archive of many small files, to be copied by who changes it."""
    return small_appends(spark, tmp_path_factory.mktemp("appended"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    asking = {item.path for item in items if "spark" in getattr(item, "fixturenames", ())}
    turn = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.path in asking, turn.get(item.path.stem, len(turn))))


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    """Kafka and Redis of this test alone, embedded: it may kill them."""
    with Runtime(Settings(home=tmp_path / "home", kafka=None, redis=None), roles=()) as runtime:
        yield runtime


def docker_answers() -> bool:
    import docker
    from docker.errors import DockerException

    try:
        return bool(docker.from_env(timeout=2).ping())
    except DockerException:
        return False


@contextmanager
def containers(home: Path) -> Iterator[Endpoints]:
    """Kafka and Redis just as docker-compose.yml has them, on free ports."""
    from testcontainers.core.container import DockerContainer

    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ports = reserve(home, ("kafka", "redis"))
    advertised = {"KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://localhost:9092,HOST://127.0.0.1:{ports['kafka']}"}
    broker = DockerContainer(services["kafka"]["image"]).with_envs(**services["kafka"]["environment"])
    broker = broker.with_envs(**advertised).with_bind_ports(9094, ports["kafka"])
    store = DockerContainer(services["redis"]["image"]).with_command(services["redis"]["command"])
    at = Endpoints(f"127.0.0.1:{ports['kafka']}", f"redis://127.0.0.1:{ports['redis']}/0")
    with broker, store.with_bind_ports(6379, ports["redis"]):
        eventually(lambda: answers(at.kafka, 1.0) and server_pid(at.redis, 1.0))
        yield at
