"""Our own processes: how each is run, with which environment, and when it counts as working."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from schemas.settings import PREFIX, Settings
from services.runtime.endpoints import Endpoints
from services.runtime.supervisor import Process

__all__ = ["COMMANDS", "ROLES", "own_processes"]

COMMANDS = {
    "worker": (sys.executable, "-m", "faust", "--loop=uvloop", "-A", "streams.app", "worker", "-l", "info", "--without-web"),
    "scorer": (sys.executable, "-m", "services.scorer"),
}
ROLES = tuple(COMMANDS)


def own_processes(settings: Settings, at: Endpoints, roles: Sequence[str] = ROLES) -> list[Process]:
    """The processes of ``roles``: ``settings.workers`` workers (worker-1, worker-2, ...), one of each other role."""
    names = {"worker": [f"worker-{number}" for number in range(1, settings.workers + 1)]}
    return [_process(settings, at, name, role) for role in roles for name in names.get(role, [role])]


def _process(settings: Settings, at: Endpoints, name: str, role: str) -> Process:
    ready = settings.home.resolve() / "ready" / name
    ready.parent.mkdir(parents=True, exist_ok=True)
    own = settings.model_copy(update={"home": settings.home.resolve(), "kafka": at.kafka, "redis": SecretStr(at.redis),
                                      "ready_file": ready})
    # The first start compiles the kernel, which takes a minute on a slow machine.
    return Process(name, COMMANDS[role], partial(_ready, ready), env=_environment(own), start_s=120.0, stop_s=20.0)


def _environment(settings: Settings) -> dict[str, str]:
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in values.items() if value is not None}


def _ready(file: Path, pid: int) -> bool:
    """The process wrote its pid: it joined its group. A file of its predecessor holds another pid."""
    try:
        return file.read_text().strip() == str(pid)
    except FileNotFoundError:
        return False
