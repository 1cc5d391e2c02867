"""The loop's workers: ``faust -A streams.loop worker``. They join predictions with outcomes, watch both, and govern retrains.

A group of its own: nothing here can hold up the feature workers, or scoring.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from schemas.settings import Settings, read_settings
from streams.agents import Several, Worker, build_app
from streams.monitors.agents import monitor_reader, monitored_topics
from streams.outcomes import joined_topics, joiner

__all__ = ["GROUP", "build", "loop_topics"]

GROUP = "headrace-loop"


def loop_topics(settings: Settings) -> list[str]:
    """What the loop reads of the use cases that ``settings`` name; nothing where no model is told its outcomes or watched."""
    return sorted({*joined_topics(settings), *monitored_topics(settings)})


def build(settings: Settings) -> Any:
    """The app with an agent per topic."""
    return build_app(GROUP, settings, {topic: partial(_worker, topic, settings) for topic in loop_topics(settings)}, patient=True)


def _worker(topic: str, settings: Settings, stopping: threading.Event) -> Worker:
    """Predictions are joined as well as watched: one chunk, two workers."""
    workers: list[Worker] = [joiner(topic, settings, stopping)] if topic in joined_topics(settings) else []
    workers += [monitor_reader(topic, settings, stopping)] if topic in monitored_topics(settings) else []
    return Several(workers) if len(workers) > 1 else workers[0]


def __getattr__(name: str) -> Any:
    if name == "app":  # built when ``faust -A streams.loop`` asks for it, not at import
        globals()["app"] = build(read_settings())
        return globals()["app"]
    raise AttributeError(name)
