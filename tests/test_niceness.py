"""Niceness that counts between sessions too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GROUP = Path("/proc/self/autogroup")
grouping = pytest.mark.skipif(not GROUP.exists() or not GROUP.read_text().strip(), reason="this kernel makes no groups of sessions")
TOLD = "import os, pathlib; from schemas.niceness import stand_back; stand_back(10); " \
       "print(os.nice(0), pathlib.Path('/proc/self/autogroup').read_text().split()[-1])"


@grouping
def test_a_process_that_leads_its_session_stands_back_with_its_whole_group() -> None:
    said = subprocess.check_output([sys.executable, "-c", TOLD], start_new_session=True, text=True)
    assert said.split() == ["10", "10"]


@grouping
def test_a_process_of_somebody_elses_session_leaves_that_as_it_is() -> None:
    before = GROUP.read_text().split()[-1]
    said = subprocess.check_output([sys.executable, "-c", TOLD], text=True)
    assert said.split() == ["10", before]
