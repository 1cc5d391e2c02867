"""Records on disk that wait for Kafka. Each is whole or not there: after a crash a torn end is cut off, what was synced is kept.

    <folder>/<n>/lock          held by the process that uses this folder; one that died leaves it to the next
    <folder>/<n>/<k>.spool     frames: length u32, crc32 u32, payload; little endian
"""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

__all__ = ["Spool", "frames"]

HEAD = struct.Struct("<II")


class Spool:
    """One process's. ``bytes`` is what lies on disk. Not for two threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = _claim(folder)
        self._file: IO[bytes] | None = None
        self._next = 1 + max((int(path.stem) for path in self.segments()), default=0)
        self._adopt(folder)
        self.bytes = sum(path.stat().st_size for path in self.segments())

    def segments(self) -> list[Path]:
        """What lies there, oldest first."""
        return sorted(self._folder.glob("*.spool"), key=lambda path: int(path.stem))

    def append(self, payloads: Iterable[bytes]) -> None:
        """On disk when this returns."""
        frames = b"".join(HEAD.pack(len(payload), zlib.crc32(payload)) + payload for payload in payloads)
        if self._file is None:
            self._file = (self._folder / f"{self._next}.spool").open("ab")
            self._next += 1
            folder = os.open(self._folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        self._file.write(frames)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.bytes += len(frames)

    def rotate(self) -> list[Path]:
        """The segments; what is appended from now on goes to another one."""
        if self._file is not None:
            self._file.close()
            self._file = None
        return self.segments()

    def remove(self, segment: Path) -> None:
        self.bytes -= segment.stat().st_size
        segment.unlink()

    def close(self) -> None:
        self.rotate()
        self._lock.close()


    def _adopt(self, folder: Path) -> None:
        """Take what other processes left that died."""
        for other in folder.iterdir():
            if other == self._folder:
                continue
            with (other / "lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                for segment in sorted(other.glob("*.spool"), key=lambda path: int(path.stem)):
                    segment.rename(self._folder / f"{self._next}.spool")
                    self._next += 1


def frames(segment: Path) -> Iterator[bytes]:
    """The payloads of a segment, up to the first that is not whole."""
    data = segment.read_bytes()
    at = 0
    while at + HEAD.size <= len(data):
        length, crc = HEAD.unpack_from(data, at)
        payload = data[at + HEAD.size:at + HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != crc:
            return
        yield payload
        at += HEAD.size + length


def _claim(folder: Path) -> tuple[Path, IO[str]]:
    """The first folder that nobody holds: that of a process which died is taken over with what lies in it."""
    for number in itertools.count():
        own = folder / str(number)
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (own / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return own, lock
    raise AssertionError
