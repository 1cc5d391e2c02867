"""Makes the archive of Kafka's classes: without it a start computes half as much again."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from schemas.jars import archive_classes, class_archive, jar_folder
from schemas.java import java_home
from schemas.settings import Settings
from services.runtime.kafka import BRIEF, kafka_process
from services.runtime.ports import reserve
from services.runtime.supervisor import Supervisor

__all__ = ["archive_kafka_classes"]

WRITING_S = 60.0


def archive_kafka_classes(settings: Settings) -> None:
    """See to it that Kafka's ``class_archive`` is there: a broker runs once, with nothing to do, and leaves its classes when it ends."""
    def run(option: str) -> None:
        with tempfile.TemporaryDirectory(prefix="headrace-classes-") as folder:
            home = Path(folder)
            ports = reserve(home, ("kafka", "controller"))
            kafka = kafka_process(settings, home, ports["kafka"], ports["controller"], (*BRIEF, option))
            supervisor = Supervisor(home / "logs", lambda states: None)
            try:
                supervisor.start([dataclasses.replace(kafka, stop_s=WRITING_S)])
            finally:
                supervisor.stop()

    archive_classes(class_archive(settings, "kafka"), jar_folder(settings, "kafka"), java_home(settings), run)
