"""What monitors compare a version with: written once, waited for where it is damaged, and silent of windows that were still filling."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_repo.reference import read_reference, write_reference
from schemas.errors import BundleError
from services.runtime.doctor import _references
from streams.monitors import agents
from tests.monitor_runs import WINDOWS_RUN, detected, reasons, run
from tests.monitor_world import Change, make_reference, make_stream, make_watch


@pytest.mark.parametrize(("days", "sign"), [(22.9, "features"), (23.1, "scale"), (None, "scale")])
def test_a_window_that_was_still_filling_when_its_model_was_judged_is_no_other_unit(days: float | None, sign: str) -> None:
    """It lies beyond what training saw because it has filled since: the data have changed, and nothing is blocked."""
    known = make_reference(history_days=days)
    counted_later = [] if days is None else ["terminal_count_30d"]  # its windows end seven days before
    assert known.filling == [*(("card_count_30d", "card_at_terminal_30d") if sign == "features" else ()), *counted_later]
    stream = make_stream(WINDOWS_RUN, per_window=1_200, change=Change(6, scale=100, scaled="card_count_30d"))
    memory = run(stream, watch=make_watch(read=lambda version: known))
    assert detected(memory)[0] == (6, sign)
    assert any("pipeline" in reason for reason in reasons(memory)) == (sign == "scale")


def test_a_damaged_reference_is_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window judged without it would be judged for good, and a worker that ends takes the joins with it."""
    monkeypatch.setattr(agents, "RETRY_S", 0.01)
    path, stopping, heard = write_reference(tmp_path, make_reference()), threading.Event(), threading.Event()
    monkeypatch.setattr(agents.log, "error", lambda *_: heard.set())
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    (finding,) = _references(tmp_path)
    assert (finding.verdict, str(path) in finding.fact) == ("missing", True)
    read = partial(agents.when_readable, partial(read_reference, tmp_path, "fraud"), stopping)
    with ThreadPoolExecutor(1) as lane:
        asked = lane.submit(read, "1")
        assert heard.wait(30)
        assert not asked.done()
        assert read("2") is None, "of another version there is none, which is no damage"
        path.write_bytes(whole)
        assert asked.result(30) == make_reference()
        path.write_bytes(b"")
        asked = lane.submit(read, "1")
        stopping.set()
        with pytest.raises(BundleError, match="is not a reference"):
            asked.result(30)


def test_a_reference_is_written_once_and_the_same_when_read(tmp_path: Any) -> None:
    reference = make_reference()
    write_reference(tmp_path, reference)
    assert read_reference(tmp_path, "fraud", "1") == reference
    write_reference(tmp_path, reference)
    with pytest.raises(BundleError, match="written once"):
        write_reference(tmp_path, make_reference(seed=5))
    assert read_reference(tmp_path, "fraud", "2") is None
    assert sum(sum(cell[0]) for cell in reference.counts) == reference.n
    assert len(reference.counts) == 28
    assert np.isclose(reference.losses["error"][0] / reference.losses["error"][1], 0.05, atol=0.01)
