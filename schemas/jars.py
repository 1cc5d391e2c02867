"""Jars of Kafka and of Spark's extras: fetched once by the Ivy that lies in pyspark's folder, as ``ivy.xml`` pins them."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import RuntimeFault
from schemas.java import java_home
from schemas.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["archive_classes", "class_archive", "fetch_jars", "jar_folder", "jars"]

IVY_FILE = Path(__file__).parents[1] / "ivy.xml"
LAST_LINES = 8


def jars(settings: Settings, conf: str) -> list[Path]:
    """The jars of ``conf`` ("kafka" or "spark"), fetched when they are not there yet (under a minute, once per ``ivy.xml``).

    Raises RuntimeFault when they cannot be had.
    """
    fetch_jars(settings, conf)
    return sorted(jar_folder(settings, conf).glob("*.jar"))


def jar_folder(settings: Settings, conf: str) -> Path:
    """Where the jars of ``conf`` lie once they are fetched: it is complete if it exists."""
    try:
        pinned = hashlib.sha256(IVY_FILE.read_bytes()).hexdigest()[:12]
    except FileNotFoundError as error:
        raise RuntimeFault(f"{IVY_FILE.name} is not beside the package",
                           hint="install headrace from its clone: pip install -e .") from error
    return settings.cache.expanduser().resolve() / "jars" / pinned / conf


def class_archive(settings: Settings, conf: str, *of: str) -> Path:
    """Where the classes of ``conf`` lie in one file, which a JVM maps instead of reading them out of jars, once ``headrace fetch`` made it.

    It is of one Java, these jars and what else ``of`` names. A JVM that it does not fit, or no longer fits, reads the jars.
    """
    release = java_home(settings) / "release"
    java = release.read_bytes() if release.exists() else bytes(release)
    pinned = hashlib.sha256("\n".join(of).encode() + java).hexdigest()[:12]
    return jar_folder(settings, conf).with_name(f"{conf}-{pinned}.jsa")


def archive_classes(archive: Path, folder: Path, java: Path, run: Callable[[str], None]) -> None:
    """See to it that ``archive`` is there, made of the jars that are in ``folder`` now.

    ``run`` gets an option for a JVM of ``java`` that is to load the classes and end.

    A Java that cannot write one (it came without an archive of its own) is asked first, for nothing, and leaves none.
    """
    if archive.exists() and archive.stat().st_mtime >= folder.stat().st_mtime:
        return
    archive.unlink(missing_ok=True)  # a JVM that maps one which no longer fits cannot write another
    draft = archive.with_suffix(f".{os.getpid()}")
    option = f"-XX:ArchiveClassesAtExit={draft}"
    subprocess.run([java / "bin" / "java", option, "-version"], capture_output=True, check=False)
    if draft.exists():
        draft.unlink()
        run(option)
    if draft.exists():
        draft.rename(archive)


def fetch_jars(settings: Settings, *confs: str) -> None:
    """See to it that the jars of every conf are in the cache; what is missing is fetched at the same time.

    Safe between processes: one fetches, the others wait for it. Progress goes to stderr.
    """
    missing = [conf for conf in confs if not jar_folder(settings, conf).exists()]
    if not missing:
        return
    java, ivy = java_home(settings) / "bin" / "java", _ivy()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("fetching the jars of {task.description}, once"), BarColumn(20), TimeElapsedColumn(),
               TextColumn("{task.fields[news]}"))
    # Ivy asks for one file after the other, so a process per conf: 44 s together, against 59 s for both in one.
    with Progress(*columns, console=Console(stderr=True)) as progress, ThreadPoolExecutor(len(missing)) as pool:
        list(pool.map(lambda conf: _fetch(settings, conf, java, ivy, progress), missing))


def _fetch(settings: Settings, conf: str, java: Path, ivy: Path, progress: Progress) -> None:
    folder, cache = jar_folder(settings, conf), settings.cache.expanduser().resolve() / "ivy" / conf
    task = progress.add_task(conf, total=None, news="")
    with _lock(cache / "lock"):
        if folder.exists():
            return
        draft = folder.with_name(f"{conf}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        ask: list[str | Path] = [
            java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", f"-Divy.default.ivy.user.dir={cache}", "-jar", ivy,
            "-cache", cache / "cache", "-ivy", IVY_FILE, "-confs", conf, "-types", "jar", "bundle",
            "-retrieve", f"{draft}/[artifact]-[revision](-[classifier]).[ext]",
        ]
        told: deque[str] = deque(maxlen=LAST_LINES)
        found = loaded = 0
        with subprocess.Popen(ask, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
            assert run.stdout is not None
            for line in run.stdout:
                told.append(line.strip())
                found += "found " in line
                loaded += "[SUCCESSFUL" in line
                progress.update(task, news=f"{found} found, {loaded} loaded")
        if run.returncode or not any(draft.glob("*.jar")):
            raise RuntimeFault(f"the jars of {conf} could not be fetched (Ivy ended with {run.returncode}): {' | '.join(told)}",
                               hint="the first start needs the network; `headrace doctor` shows what is there")
        draft.rename(folder)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _ivy() -> Path:
    spec = importlib.util.find_spec("pyspark")  # found, not imported: pyspark belongs to jobs
    at = Path(spec.origin).parent / "jars" if spec and spec.origin else None
    found = sorted(at.glob("ivy-*.jar")) if at else []
    if not found:
        raise RuntimeFault("pyspark, which brings Ivy, is not installed", hint="pip install -e .")
    return found[-1]
