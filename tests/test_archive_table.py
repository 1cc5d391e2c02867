"""Files beside the tables are there in full or as they were, whenever their writer dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

from feature_repo.delta_files import read_file, write_file


class Deadly(str):
    """A text whose writer is killed while it writes."""

    def encode(self, *_: str) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""


def test_a_writer_that_is_killed_leaves_what_was_there(tmp_path: Path) -> None:
    path = str(tmp_path / "retrains" / "fraud" / "1.json")
    write_file(path, "the first")
    writer = multiprocessing.get_context("spawn").Process(target=write_file, args=(path, Deadly("the second")))
    writer.start()
    writer.join(180)
    assert writer.exitcode == -signal.SIGKILL
    assert read_file(path) == "the first"
    write_file(path, "the second")
    assert read_file(path) == "the second"
    assert read_file(str(tmp_path / "none")) is None
