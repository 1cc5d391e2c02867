"""Parts of the HTTP API by themselves: batches, the spool, keys."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.online import Reading
from schemas.errors import RefusedError, SettingsError
from schemas.fraud import Transaction
from schemas.settings import Settings
from services.api.batching import Batcher, Sizing
from services.api.keys import KeyRing, add_key, ensure_key, key_file, read_keys, revoke_key
from services.api.spool import Spool, frames
from services.cli import main
from services.judge import Judge
from services.scoring import NO_PLACE, Arrived, Scored

LATER_S = 60.0


class SlowStore:
    """Answers when it is told to: what a store cannot be asked to do."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], Callable[[Reading | None], None]]] = []
        self.wanted: Any = None

    def ask(self, wanted: Any, answered: Callable[[Reading | None], None]) -> None:
        self.wanted = wanted
        self.asked.append((list(wanted[0][1]), answered))

    def answer(self, number: int = -1) -> None:
        sets: Any = tuple({name: None for name in names} for _, names in self.wanted)
        self.asked[number][1](Reading(((),) * len(sets), sets))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(Settings(home=tmp_path_factory.mktemp("judge")), None)


def arrived(name: str) -> Arrived:
    return Arrived(Transaction(name, 1_000, name, "t", 1), NO_PLACE, NO_PLACE, 1_000, False)


def event_ids(results: list[Scored]) -> list[str]:
    import msgspec

    return [msgspec.json.decode(one.value)["event_id"] for one in results]


def in_loop(judge: Judge, work: Callable[[Batcher, SlowStore], Any], sizing: Sizing | None = None,
            write: Callable[[Any, Any], Any] = lambda events, results: None) -> Any:
    async def run() -> Any:
        store: Any = SlowStore()
        return await work(Batcher(judge, store, write, sizing or Sizing(64, 0.005)), store)

    return asyncio.run(run())


def soon() -> float:
    import time

    return time.monotonic() + LATER_S


def test_a_lone_event_is_asked_for_at_once_and_those_that_come_meanwhile_go_together(judge: Judge) -> None:
    async def work(batcher: Batcher, store: SlowStore) -> None:
        first = batcher.submit(arrived("a"), soon())
        await asyncio.sleep(0)
        assert [names for names, _ in store.asked] == [["a"]], "nothing waited for company"
        others = [batcher.submit(arrived(name), soon()) for name in "bcd"]
        await asyncio.sleep(0)
        assert len(store.asked) == 1
        asked = store.wanted
        store.answer()
        assert [names for names, _ in store.asked] == [["a"], ["b", "c", "d"]], "asked for before the first was scored"
        assert store.wanted is not asked
        store.answer()
        assert event_ids([await first, *[await one for one in others]]) == ["a", "b", "c", "d"]

    in_loop(judge, work)


@settings(max_examples=30, deadline=None)
@given(most=st.integers(1, 9), arrivals=st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_no_batch_is_larger_than_the_most_and_each_event_is_scored_once(judge_of: Judge, most: int, arrivals: list[int]) -> None:
    async def work(batcher: Batcher, store: SlowStore) -> None:
        answers, number = [], 0
        for n in arrivals:
            for _ in range(n):
                answers.append((f"e{number}", batcher.submit(arrived(f"e{number}"), soon())))
                number += 1
            await asyncio.sleep(0)
            if store.asked and len(store.asked) > done[0]:
                done[0] += 1
                store.answer(done[0] - 1)
        while not all(answer.done() for _, answer in answers):
            await asyncio.sleep(0)
            if len(store.asked) > done[0]:
                done[0] += 1
                store.answer(done[0] - 1)
        assert all(len(names) <= most for names, _ in store.asked)
        assert [name for names, _ in store.asked for name in names] == [name for name, _ in answers]
        assert event_ids([await answer for _, answer in answers]) == [name for name, _ in answers]

    done = [0]
    in_loop(judge_of, work, Sizing(most, 1e9))


@pytest.fixture(scope="module")
def judge_of(judge: Judge) -> Judge:
    return judge


def test_what_would_be_late_is_refused_before_it_is_scored(judge: Judge) -> None:
    sizing = Sizing(1, 1e9)
    sizing.batch_s = 10.0

    async def work(batcher: Batcher, store: SlowStore) -> None:
        import time

        alone = batcher.submit(arrived("a"), time.monotonic() + 5)
        await asyncio.sleep(0)
        assert len(store.asked) == 1, "alone it is tried: it may have become faster"
        with pytest.raises(RefusedError) as caught:
            batcher.submit(arrived("b"), time.monotonic() + 5)
        assert (caught.value.status, caught.value.reason) == (503, "overloaded")
        patient = batcher.submit(arrived("c"), time.monotonic() + 1_000)
        store.answer()
        store.answer()
        assert event_ids([await alone, await patient]) == ["a", "c"]

    in_loop(judge, work, sizing)


def test_an_answer_waits_for_what_its_record_waits_for(judge: Judge) -> None:
    async def work(batcher: Batcher, store: SlowStore) -> None:
        held.append(asyncio.get_running_loop().create_future())
        answer = batcher.submit(arrived("a"), soon())
        await asyncio.sleep(0)
        store.answer()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not answer.done()
        held[0].set_result(None)
        assert event_ids([await answer]) == ["a"]

    held: list[Any] = []
    in_loop(judge, work, write=lambda events, results: held[0])


def test_nothing_is_begun_while_definitions_change(judge: Judge) -> None:
    async def work(batcher: Batcher, store: SlowStore) -> None:
        first = batcher.submit(arrived("a"), soon())
        await asyncio.sleep(0)
        parked = asyncio.ensure_future(batcher.park())
        await asyncio.sleep(0)
        second = batcher.submit(arrived("b"), soon())
        assert not parked.done(), "one is under way"
        store.answer()
        await parked
        await asyncio.sleep(0)
        assert (first.done(), second.done(), len(store.asked)) == (True, False, 1)
        batcher.unpark()
        store.answer()
        assert event_ids([await second]) == ["b"]

    in_loop(judge, work)


@settings(max_examples=60, deadline=None)
@given(payloads=st.lists(st.binary(max_size=40), max_size=8), cut=st.integers(0, 400), flip=st.integers(0, 400) | st.none())
def test_a_damaged_end_costs_no_frame_before_it(payloads: list[bytes], cut: int, flip: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder))
        spool.append(payloads)
        segment, = spool.rotate()
        assert list(frames(segment)) == payloads
        data = bytearray(segment.read_bytes())
        assert spool.bytes == len(data)
        del data[len(data) - min(cut, len(data)):]
        if flip is not None and flip < len(data):
            data[flip] ^= 1
        segment.write_bytes(data)
        kept = list(frames(segment))
        assert kept == payloads[:len(kept)]
        if not cut and flip is None:
            assert kept == payloads
        spool.close()


def test_what_a_dead_process_left_is_taken_over_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    program = "import sys, os; from pathlib import Path; from services.api.spool import Spool\n" \
              "spool = Spool(Path(sys.argv[1])); spool.append([sys.argv[2].encode()]); print('there', flush=True); sys.stdin.read()"

    def process(payload: str) -> Any:
        started = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), payload], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert started.stdout is not None
        assert started.stdout.readline() == b"there\n"
        return started

    living, dead = process("living"), process("dead")
    dead.kill()
    dead.communicate()
    try:
        spool = Spool(tmp_path)
        assert [list(frames(segment)) for segment in spool.segments()] == [[b"dead"]]
        spool.close()
    finally:
        living.kill()
        living.communicate()
    spool = Spool(tmp_path)
    assert sorted(payload for segment in spool.segments() for payload in frames(segment)) == [b"dead", b"living"]
    spool.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "api"


def test_the_first_key_is_made_once_and_only_its_hash_is_kept(folder: Path) -> None:
    first = ensure_key(folder)
    token = first.read_text().strip()
    assert ensure_key(folder).read_text().strip() == token
    assert token not in key_file(folder).read_text()
    assert [stat.S_IMODE(file.stat().st_mode) for file in (first, key_file(folder))] == [0o600, 0o600]
    key = KeyRing(key_file(folder)).find(token.encode())
    assert key is not None
    assert all(key.may(scope) for scope in key.scopes)


def test_a_key_that_is_wrong_in_one_place_is_none(folder: Path) -> None:
    _, token = add_key(folder, ["score"])
    ring = KeyRing(key_file(folder))
    assert ring.find(token.encode()) is not None
    for at in range(len(token)):
        other = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1:]
        assert ring.find(other.encode()) is None
    assert ring.find(b"") is None


def test_a_revoked_key_is_gone_and_an_unknown_one_is_told(folder: Path) -> None:
    key, _ = add_key(folder, ["score"])
    revoke_key(folder, key.id)
    assert read_keys(key_file(folder)) == []
    with pytest.raises(SettingsError, match=key.id):
        revoke_key(folder, key.id)


def test_a_rate_lets_one_seconds_worth_through_at_once(folder: Path) -> None:
    key, _ = add_key(folder, ["score"], rate_per_s=5.0)
    ring = KeyRing(key_file(folder))
    taken = [ring.take(key) for _ in range(20)]
    assert taken[:5] == [0.0] * 5
    assert 0 < taken[-1] <= 0.2


def test_keys_are_made_listed_and_revoked_on_the_command_line_and_never_shown(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    out = tmp_path / "shop.key"
    assert main(["api-keys", "add", "--scopes", "score,ingest", "--rate", "50", "--out", str(out), "--dry-run"]) == 0
    assert not out.exists()
    assert main(["api-keys", "add", "--scopes", "score,ingest", "--rate", "50", "--out", str(out)]) == 0
    assert main(["api-keys", "add", "--out", str(out)]) == 2, "a file that is there is not written over"
    assert main(["api-keys", "add", "--scopes", "everything", "--out", str(tmp_path / "other")]) == 2
    assert main(["api-keys", "--json"]) == 0
    token, said = out.read_text().strip(), capsys.readouterr()
    assert token not in said.out + said.err
    key = KeyRing(key_file(tmp_path / "home" / "api")).find(token.encode())
    assert key is not None
    assert (key.scopes, key.rate_per_s) == (("score", "ingest"), 50.0)
    assert key.id in said.out
    assert main(["api-keys", "revoke", key.id]) == 0
    assert main(["api-keys", "revoke", key.id]) == 2
