"""Where Kafka and Redis answer: the external ones of the settings, else those of the runtime in the home folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from schemas.errors import RuntimeFault
from schemas.settings import Settings
from services.runtime.home import running

__all__ = ["Endpoints", "endpoints", "kafka_endpoint", "redis_endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """``kafka`` is a list of bootstrap servers, ``redis`` a URL (not printed: it may hold a password)."""

    kafka: str
    redis: str = field(repr=False)


def endpoints(settings: Settings) -> Endpoints:
    """Where to connect to. Raises RuntimeFault when an embedded engine is meant and none is up in ``settings.home``."""
    return Endpoints(kafka_endpoint(settings), redis_endpoint(settings))


def kafka_endpoint(settings: Settings) -> str:
    """As ``endpoints``, for what needs no Redis."""
    return settings.kafka or _embedded(settings, "kafka")


def redis_endpoint(settings: Settings) -> str:
    """As ``endpoints``, for what needs no Kafka."""
    return settings.redis.get_secret_value() if settings.redis else _embedded(settings, "redis")


def _embedded(settings: Settings, engine: Literal["kafka", "redis"]) -> str:
    home = settings.home.resolve()
    state = running(home)
    if state is None or state.state == "stopping":
        raise RuntimeFault(f"headrace does not run in {home}", hint="headrace up")
    if state.state == "starting":
        raise RuntimeFault(f"headrace in {home} is still starting", hint="wait for `headrace up` to say that it is up")
    if (here := state.kafka if engine == "kafka" else state.redis) is None:
        raise RuntimeFault(f"headrace in {home} runs with an external {engine.title()}, which these settings do not name",
                           hint=f"set the same HEADRACE_{engine.upper()} as for `headrace up`")
    return here
