"""Kafka's classes in one file, which its JVM maps instead of reading them out of jars: a third of what a start computes."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

from schemas.java import java_home
from schemas.settings import Settings
from services.runtime.kafka import class_archive, kafka_process
from services.runtime.ports import reserve
from services.runtime.supervisor import Supervisor

__all__ = ["make_class_archive"]

WRITING_S = 60.0


def make_class_archive(settings: Settings) -> None:
    """See to it that ``class_archive`` is there: a broker runs once, with nothing to do, and leaves its classes when it ends.

    A Java that cannot write one (it came without an archive of its own) leaves none, and Kafka starts as ever.
    """
    archive = class_archive(settings, java_home(settings))
    if archive.exists():
        return
    draft = archive.with_suffix(f".{os.getpid()}")
    with tempfile.TemporaryDirectory(prefix="headrace-classes-") as folder:
        home = Path(folder)
        ports = reserve(home, ("kafka", "controller"))
        kafka = kafka_process(settings, home, ports["kafka"], ports["controller"], (f"-XX:ArchiveClassesAtExit={draft}",))
        supervisor = Supervisor(home / "logs", lambda states: None)
        try:
            supervisor.start([dataclasses.replace(kafka, stop_s=WRITING_S)])
        finally:
            supervisor.stop()
    if draft.exists():
        draft.rename(archive)
