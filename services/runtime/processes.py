"""Our own processes: how each is run, with which environment, and when it counts as working."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from feature_repo.models import Outcomes
from feature_repo.use_cases import declared, fed_views, models
from schemas.settings import PREFIX, Settings
from services.runtime.endpoints import Endpoints
from services.runtime.supervisor import Process

__all__ = ["COMMANDS", "ROLES", "own_processes"]

COMMANDS = {
    "worker": (sys.executable, "-m", "faust", "--loop=uvloop", "-A", "streams.app", "worker", "-l", "info", "--without-web"),
    "loop": (sys.executable, "-m", "faust", "--loop=uvloop", "-A", "streams.loop", "worker", "-l", "info", "--without-web"),
    "scorer": (sys.executable, "-m", "services.scorer"),
    "reasons": (sys.executable, "-m", "services.reasons"),
    "shadow": (sys.executable, "-m", "services.shadow"),
    "compactor": (sys.executable, "-m", "services.compactor"),
    "runner": (sys.executable, "-m", "services.runner"),
    "guard": (sys.executable, "-m", "services.guard"),
    "api": (sys.executable, "-m", "services.api"),
}
ROLES = tuple(COMMANDS)
ARENAS = {"MALLOC_ARENA_MAX": "2"}
"""glibc gives every thread an arena of its own and hands none of it back: 226 MB for a worker instead of 190, at the same speed."""


def own_processes(settings: Settings, at: Endpoints, roles: Sequence[str] = ROLES) -> list[Process]:
    """The processes of ``roles``: ``settings.workers`` workers (worker-1, worker-2, ...), the loop where something is to be joined or
    watched, a scorer of each model that is on and its shadow, one that writes the reasons of alerts, a compactor where a view has
    something to compact, a runner of retrains where a model is watched, a guard of canaries, and the HTTP API."""
    wanted = models(settings)
    may_fold = (*fed_views(settings), *(view for case in declared(settings) for view in case.views))
    commands = {
        "worker": {f"worker-{number}": COMMANDS["worker"] for number in range(1, settings.workers + 1)},
        "loop": {"loop": COMMANDS["loop"]} if any(spec.drift or isinstance(spec.labels, Outcomes) for spec in wanted) else {},
        "scorer": {"scorer" if len(wanted) == 1 else f"scorer-{spec.name}": (*COMMANDS["scorer"], "--model", spec.name)
                   for spec in wanted},
        "reasons": {"reasons": COMMANDS["reasons"]},
        "shadow": {"shadow" if len(wanted) == 1 else f"shadow-{spec.name}": (*COMMANDS["shadow"], "--model", spec.name)
                   for spec in wanted},
        "compactor": {"compactor": COMMANDS["compactor"]} if any(view.hops for view in may_fold) else {},
        "runner": {"runner": COMMANDS["runner"]} if any(spec.drift for spec in wanted) else {},
        "guard": {"guard": COMMANDS["guard"]},
        "api": {"api": COMMANDS["api"]},
    }
    return [_process(settings, at, name, command) for role in roles for name, command in commands[role].items()]


def _process(settings: Settings, at: Endpoints, name: str, command: tuple[str, ...]) -> Process:
    ready = settings.home.resolve() / "ready" / name
    ready.parent.mkdir(parents=True, exist_ok=True)
    own = settings.model_copy(update={"home": settings.home.resolve(), "kafka": at.kafka, "redis": SecretStr(at.redis),
                                      "ready_file": ready})
    # The first start compiles the kernel, which takes a minute on a slow machine.
    return Process(name, command, partial(_ready, ready), env=ARENAS | _environment(own), start_s=120.0, stop_s=20.0)


def _environment(settings: Settings) -> dict[str, str]:
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {PREFIX + name.upper(): _text(value) for name, value in values.items() if value is not None}


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _ready(file: Path, pid: int) -> bool:
    """The process wrote its pid: it joined its group. A file of its predecessor holds another pid."""
    try:
        return file.read_text().strip() == str(pid)
    except FileNotFoundError:
        return False
