"""Judges of a reverse shadow that are killed on the way; light, for each begins in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from feature_repo.fraud import FRAUD
from schemas.settings import Settings
from services import reverse_shadow
from services.release_log import ReleaseLog
from services.reverse_shadow import ReverseShadow

__all__ = ["POINTS", "die", "look_once"]

POINTS = 7


def look_once(settings: Settings) -> None:
    ReverseShadow(settings, FRAUD).look()


def die(settings: Settings, point: int) -> None:
    """Killed before and after evidence is written, the release, MLflow and pointer; and between the last two."""
    from jobs import registry

    places: list[tuple[Any, str, bool]] = [
        (reverse_shadow, "write_file", True), (reverse_shadow, "write_file", False), (ReleaseLog, "_publish", True),
        (ReleaseLog, "_publish", False), (registry, "make_live", True), (registry, "set_aliases", True), (registry, "make_live", False)]
    assert len(places) == POINTS
    module, name, before = places[point]
    called: Callable[..., Any] = getattr(module, name)

    def then_die(*arguments: Any, **named: Any) -> None:
        if not before:
            called(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, then_die)
    look_once(settings)
