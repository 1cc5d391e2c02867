"""Peak resident memory of a tree of processes, by what each is for."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Self

import psutil

__all__ = ["PeakMemory"]

EVERY_S = 1.0


class PeakMemory:
    """Samples this process and all below it until the end of the ``with`` block.

    ``peaks_mb`` holds the highest resident size seen of each kind of process, in which pages that processes share are counted in each;
    ``total_mb`` the highest sum of all at one moment, in which each page is counted once. ``names`` is pid -> name of the children
    that are known; the others are named by what they run.
    """

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self.peaks_mb: dict[str, float] = {}
        self.total_mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(EVERY_S):
            now: dict[str, float] = {}
            total = 0.0
            for process in [own, *own.children(recursive=True)]:
                try:
                    name = self._name(process)
                    held = process.memory_full_info()
                    now[name] = now.get(name, 0.0) + held.rss / 2**20
                    total += getattr(held, "pss", held.rss) / 2**20  # what only Linux says
                except psutil.Error:
                    continue  # it ended meanwhile
            for name, size in now.items():
                self.peaks_mb[name] = max(self.peaks_mb.get(name, 0.0), size)
            self.total_mb = max(self.total_mb, total)

    def _name(self, process: psutil.Process) -> str:
        if process.pid == os.getpid():
            return "demo"
        if process.pid in self._names:
            return self._names[process.pid]
        command = " ".join(process.cmdline())
        if "pyspark.daemon" in command:
            return "spark-python"
        return "spark-jvm" if "org.apache.spark" in command else process.name()
