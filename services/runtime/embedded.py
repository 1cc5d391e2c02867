"""The runtime in one piece: claim the home folder, start the engines, make the topics, start our own processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Literal, Self

from feature_repo.key_ring import ensure_key
from schemas.settings import Settings
from schemas.topics import catalogue
from services.releasing import adopt_champions
from services.runtime.endpoints import Endpoints
from services.runtime.home import ProcessState, RuntimeState, claim, write_state
from services.runtime.kafka import kafka_process
from services.runtime.ports import reserve
from services.runtime.processes import ROLES, own_processes
from services.runtime.redis import redis_process
from services.runtime.supervisor import Process, Supervisor
from services.runtime.topics import create_topics

__all__ = ["Runtime"]


class Runtime:
    """Everything of one home folder, up from ``__enter__`` to ``__exit__``.

    Kafka and Redis are children where the settings name no external ones; ``roles`` says which of our own processes run
    ("worker", "scorer", "api"; none for the engines and the topics alone). ``tell`` hears one line for each child that becomes healthy.

    Raises RuntimeFault when the home is taken or a child does not start, LogError when the topics cannot be made.
    """

    def __init__(self, settings: Settings, roles: Sequence[str] = ROLES, tell: Callable[[str], None] = lambda line: None) -> None:
        self._settings = settings.model_copy(update={"home": settings.home.resolve()})
        self._roles = roles
        self._tell = tell
        self._phase: Literal["starting", "up", "stopping"] = "starting"
        self._embedded: dict[str, str] = {}
        self._told: set[str] = set()
        self._resources = ExitStack()
        self._publishing = threading.Lock()
        self._supervisor = Supervisor(self._settings.home / "logs", self._changed)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        with ExitStack() as undo:
            undo.enter_context(claim(self._settings.home))
            undo.callback(self._stop)
            self._enter("starting")
            self._start()
            self._resources = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._resources.close()

    @property
    def kafka(self) -> str:
        """Bootstrap servers."""
        return self.endpoints.kafka

    @property
    def redis(self) -> str:
        """URL."""
        return self.endpoints.redis

    @property
    def api(self) -> str:
        """Address of the HTTP API, where it is one of the roles."""
        return self._embedded["api"]

    @property
    def endpoints(self) -> Endpoints:
        external = self._settings.redis.get_secret_value() if self._settings.redis else ""
        return Endpoints(self._settings.kafka or self._embedded["kafka"], external or self._embedded["redis"])

    @property
    def state(self) -> RuntimeState:
        """As ``runtime.json`` has it."""
        embedded = self._embedded
        return RuntimeState(os.getpid(), self._phase, embedded.get("kafka"), embedded.get("redis"), self._supervisor.states(),
                            embedded.get("api"))

    def pid(self, name: str) -> int | None:
        """The process id of the child ``name`` (kafka, redis, worker-1, scorer, ...); None while it is not running."""
        return next(process.pid for process in self._supervisor.states() if process.name == name)

    def hold(self, name: str) -> None:
        """Stop the child ``name`` and leave it stopped until ``release``."""
        self._supervisor.hold(name)

    def release(self, name: str) -> None:
        self._supervisor.release(name)

    def wait(self) -> None:
        """Block for as long as the runtime works: until a signal's exception, or RuntimeFault."""
        self._supervisor.wait()

    def _start(self) -> None:
        self._supervisor.start(self._engines())
        create_topics(self.kafka, catalogue(self._settings))
        if made := ensure_key(self._settings.key_folder):
            self._tell(f"made key {made} in {self._settings.key_folder}: it signs models, and only what it signed is loaded")
        for release in adopt_champions(self._settings, self.endpoints) if "scorer" in self._roles else ():
            self._tell(f"{release.model} version {release.champion} is live, epoch {release.epoch}: {release.why}")
        self._supervisor.start(own_processes(self._own_settings(), self.endpoints, self._roles))
        self._enter("up")

    def _own_settings(self) -> Settings:
        """With the port of the API, which is to be known before it runs."""
        if "api" not in self._roles:
            return self._settings
        port = self._settings.api_port or reserve(self._settings.home, ("api",))["api"]
        self._embedded["api"] = f"http://{self._settings.api_host}:{port}"
        return self._settings.model_copy(update={"api_port": port})

    def _engines(self) -> list[Process]:
        settings, home = self._settings, self._settings.home
        ports = reserve(home, ("kafka", "controller", "redis"))
        engines = []
        if not settings.redis:
            self._embedded["redis"] = f"redis://127.0.0.1:{ports['redis']}/0"
            engines.append(redis_process(home, ports["redis"]))
        if not settings.kafka:
            self._embedded["kafka"] = f"127.0.0.1:{ports['kafka']}"
            engines.append(kafka_process(settings, home, ports["kafka"], ports["controller"]))
        return engines

    def _stop(self) -> None:
        self._enter("stopping")
        self._supervisor.stop()

    def _enter(self, phase: Literal["starting", "up", "stopping"]) -> None:
        self._phase = phase
        self._publish()

    def _changed(self, processes: tuple[ProcessState, ...]) -> None:
        for process in processes:
            if process.state == "healthy" and process.name not in self._told:
                self._told.add(process.name)
                where = self._embedded.get(process.name, f"process {process.pid}")
                self._tell(f"{process.name:<10} {where} after {time.monotonic() - self._began:.1f} s")
        self._publish()

    def _publish(self) -> None:
        with self._publishing:
            write_state(self._settings.home, self.state)
