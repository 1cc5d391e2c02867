"""``headrace fetch``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    add_command(subparsers, "fetch", run, help="fetch the jars of Kafka and Spark now; all else works without a network then",
                example="headrace fetch")


def run(arguments: argparse.Namespace) -> None:
    from feature_repo.use_cases import models
    from jobs.spark import archive_spark_classes
    from schemas.jars import fetch_jars, jar_folder
    from schemas.settings import read_settings
    from services.judge import Judge
    from services.runtime.class_archive import archive_kafka_classes

    settings = read_settings()
    fetch_jars(settings, "kafka", "spark")
    archive_kafka_classes(settings)
    archive_spark_classes(settings)
    for spec in models(settings):  # compiles the kernel, which each process of a first start would do for itself
        Judge(settings.model_copy(update={"kafka": None}), spec.name).warm_up()
    folders = {conf: jar_folder(settings, conf) for conf in ("kafka", "spark")}
    show(arguments, folders, "\n".join(f"{conf}: {len(list(folder.glob('*.jar')))} jars in {folder}" for conf, folder in folders.items()))
