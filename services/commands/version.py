"""``headrace version``"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import TYPE_CHECKING

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers

ENGINES = ("confluent-kafka", "delta-spark", "faust-streaming", "feast", "onnxruntime", "pyspark", "redis")


def register(subparsers: Subparsers) -> None:
    add_command(subparsers, "version", run, help="the version of headrace and of what it stands on", example="headrace version --json")


def run(arguments: argparse.Namespace) -> None:
    versions = {name: version(name) for name in ("headrace", *ENGINES)}
    show(arguments, versions, "\n".join(f"{name} {number}" for name, number in versions.items()))
