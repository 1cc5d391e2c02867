"""Niceness that counts between sessions too."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.errors import CheckError, ContractError, HeadraceError, RefusedError, StoreError
from tests.deadline import eventually

GROUP = Path("/proc/self/autogroup")
ROOT = Path(__file__).parents[1]
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


ASIDE = "import os; from schemas.niceness import aside, stand_back; from tests.test_niceness import {name}; stand_back(10); {program}"


def program(name: str, text: str) -> list[str]:
    return [sys.executable, "-c", ASIDE.format(name=name, program=text)]


@grouping
def test_work_aside_is_done_by_a_child_that_stands_back_from_other_sessions_too() -> None:
    command = program("told_group", "print(os.getpid(), *aside(told_group))")
    parent, child, group = subprocess.check_output(command, text=True, cwd=ROOT).split()
    assert parent != child
    assert group == "10"


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_what_fails_aside_is_raised_and_a_child_that_is_killed_is_told(share: float) -> None:
    for work, said in (("told_group, 'no'", "StoreError: no; hint: a hint"), ("os.abort", "ended with exit code -6"),
                       ("told_group, 'lock'", "RuntimeFault: LockedError: "), ("told_group, 'lock'", "in told_group")):
        done = subprocess.run(program("told_group", f"aside({work}, share={share})"), capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 1
        assert said in done.stderr


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.25, 0.35, 0.45])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_has_hardly_begun_ends_with_who_asked_for_it(tmp_path: Path, ending: signal.Signals, after_s: float) -> None:
    """Nor is it stopped for ever. Its parent's output is piped: whoever reads that sees its end when the child, too, has ended."""
    command = program("wait", f"print(flush=True); aside(wait, {str(tmp_path / 'pid')!r}, share=0.25)")
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert parent.stdout is not None
    parent.stdout.readline()
    threading.Event().wait(after_s)
    parent.send_signal(ending)
    parent.communicate(timeout=30)


def test_an_interrupt_reaches_the_thread_that_works(tmp_path: Path) -> None:
    """Beside threads that might take it, in a call that waits for ever."""
    told = tmp_path / "pid"
    parent = subprocess.Popen(program("receive", f"aside(receive, {str(told)!r}, share=0.25)"), cwd=ROOT, stderr=subprocess.PIPE)
    eventually(told.exists)
    parent.send_signal(signal.SIGINT)
    parent.communicate(timeout=30)


@pytest.mark.parametrize("error", [ContractError("not-json", "a fact", hint="a hint"), CheckError("a fact", {"rule": 1}, hint="a hint"),
                                   RefusedError(429, "overloaded", "a fact", retry_s=3), StoreError("a fact")], ids=repr)
def test_our_errors_are_between_processes_what_they_are(error: HeadraceError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_work_aside_ends_with_who_asked_for_it(tmp_path: Path, ending: signal.Signals, share: float) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen(program("wait", f"aside(wait, {str(told)!r}, share={share})"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    child = int(eventually(lambda: told.exists() and told.read_text()))
    parent.send_signal(ending)
    said = parent.communicate()[1]
    eventually(lambda: not runs(child))
    assert said.count("Traceback") == (ending == signal.SIGINT), "the child's own is not told as well"


def test_work_aside_rests_and_goes_on(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen(program("wait", f"aside(wait, {str(told)!r}, share=0.5)"), cwd=ROOT)
    child = int(eventually(lambda: told.exists() and told.read_text()))
    for _ in range(3):
        eventually(lambda: state(child) == "T")
        eventually(lambda: state(child) == "S")
    parent.kill()
    parent.wait()


def told_group(fails: str = "") -> tuple[int, str]:
    if fails == "lock":
        raise LockedError(threading.Lock())
    if fails:
        raise StoreError(fails, hint="a hint")
    return os.getpid(), GROUP.read_text().split()[-1]


class LockedError(Exception):
    """One that cannot be pickled."""


def receive(path: str) -> None:
    for _ in range(3):
        threading.Thread(target=lambda: [threading.Event().wait(0.5) for _ in iter(int, 1)], daemon=True).start()
    Path(path).touch()
    socket.socketpair()[0].recv(1)


def wait(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    threading.Event().wait()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def runs(pid: int) -> bool:
    """A process that has ended may still be listed, until its new parent takes note."""
    try:
        return state(pid) != "Z"
    except FileNotFoundError:
        return False
