"""One answer to "what is live": the chain's laws, writers that race, writers that die, and what the command says."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from feature_repo.bundle import champion
from feature_repo.fraud import SERVICE
from schemas.fraud import Transaction
from schemas.releases import RELEASES, ROLLBACK, Chain, Release
from schemas.settings import Settings
from services.cli import main
from services.judge import Judge
from services.release_log import ReleaseLog
from services.releasing import adopt_champions, record_release
from services.runtime.embedded import Runtime
from services.runtime.endpoints import Endpoints
from services.scoring import Arrived
from tests.deadline import eventually
from tests.small_model import promote_small_model, register_small_model, write_small_model


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_writers_that_have_not_read_everything_lose_and_all_readers_agree(steps: list[tuple[int, bool]]) -> None:
    """Four writers; each first reads on, or does not, and then writes what follows the state that it knows."""
    log: list[Release] = []
    views, read = [Chain() for _ in range(4)], [0] * 4

    def catch_up(who: int) -> list[bool]:
        counted = [views[who].take(offset, log[offset]) for offset in range(read[who], len(log))]
        read[who] = len(log)
        return counted

    won = 0
    for number, (who, reads) in enumerate(steps):
        if reads:
            catch_up(who)
        log.append(views[who].following(f"{who}-{number}", "m", f"v{number}", 1000 - number, "", ""))
        won += catch_up(who)[-1]
    assert len({msgspec.json.encode(chain.history("m")) for chain in views if catch_up(views.index(chain)) or True}) == 1
    history = views[0].history("m")
    assert len(history) == won, "who read its own record back knows the truth"
    assert [release.epoch for release in history] == list(range(1, won + 1))
    assert all(after.previous == before.champion and after.at_ms >= before.at_ms for before, after in pairwise(history))


def test_a_record_that_comes_again_or_names_another_predecessor_changes_nothing() -> None:
    chain = Chain()
    first = chain.following("a", "m", "1", 10, "", "")
    assert chain.take(0, first)
    assert not chain.take(0, first)
    assert not chain.take(1, first), "sent twice"
    second = chain.following("b", "m", "2", 20, "", "")
    for wrong in ({"follows": -1}, {"follows": 1}, {"epoch": 1}, {"epoch": 3}, {"release_id": "a"}):
        assert not chain.take(2, msgspec.structs.replace(second, **wrong))
    assert chain.take(3, second)
    assert chain.take(4, chain.following("a", "other", "1", 5, "", "")), "each model has a chain of its own"
    assert [chain.live_at("m", at).champion if chain.live_at("m", at) else None for at in (9, 10, 19, 20, 99)] == [None, "1", "1", "2", "2"]


def test_racing_writers_make_one_chain(kafka: str) -> None:
    model, context = "race", multiprocessing.get_context("spawn")
    writers = [context.Process(target=_release_five, args=(kafka, model, who)) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    history = _history(kafka, model)
    assert sorted(release.release_id for release in history) == sorted(f"{who}-{n}" for who in range(3) for n in range(5)), "each once"
    assert [release.epoch for release in history] == list(range(1, 16))


def test_a_writer_that_died_after_it_wrote_finds_its_own_record(kafka: str) -> None:
    model, context = "died", multiprocessing.get_context("spawn")
    writer = context.Process(target=_write_and_die, args=(kafka, model))
    writer.start()
    writer.join(180)
    assert writer.exitcode == -signal.SIGKILL
    log = ReleaseLog(kafka)
    assert log.release("once", model, "1", 5, "", "").epoch == 1
    assert len(log.catch_up().history(model)) == 1
    log.close()


def test_a_version_follows_only_the_one_that_it_was_judged_against(kafka: str) -> None:
    log, other = ReleaseLog(kafka), ReleaseLog(kafka)
    first = log.release("1", "stale", "1", 5, "", "", instead_of="0")
    assert first is not None, "nothing was on the chain"
    other.release("2", "stale", "2", 6, "", "", instead_of="1")
    assert log.release("3", "stale", "3", 7, "", "", instead_of="1") is None
    assert log.release("1", "stale", "1", 5, "", "", instead_of="0") == first, "what was done stays done"
    assert [release.champion for release in _history(kafka, "stale")] == ["1", "2"]
    log.close()
    other.close()


def test_foreign_records_change_nothing(kafka: str) -> None:
    producer = Producer({"bootstrap.servers": kafka})
    for value in (b"", b"not JSON", b'{"model":"junk"}'):
        producer.produce(RELEASES, value, b"junk", 0)
    producer.produce(RELEASES, msgspec.json.encode(Release("x", "junk", 7, 3, "9", None, "", "", 0)), b"junk", 0)
    assert producer.flush(10) == 0
    log = ReleaseLog(kafka)
    assert log.release("1", "junk", "1", 5, "", "").epoch == 1
    log.close()
    assert [release.champion for release in _history(kafka, "junk")] == ["1"]


def test_scorers_and_the_command_follow_the_chain(runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                                  monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA", runtime.kafka)
    assert main(["live", "--model", "fraud", "--json"]) == 1
    settings, log = Settings(home=tmp_path, kafka=runtime.kafka, redis=SecretStr(runtime.redis)), ReleaseLog(runtime.kafka)
    judge = Judge(settings, "fraud")
    assert _scored(judge) == (None, None)
    promote_small_model(settings.models, "1")
    assert eventually(lambda: _scored(judge) == ("1", None)), "the pointer decides where nothing was released"
    write_small_model(settings.models, "2", SERVICE)
    broken = write_small_model(settings.models, "3", SERVICE)
    (broken / "model.onnx").write_bytes(b"")
    for epoch, (version, expected, refused) in enumerate((
            ("1", ("1", 1), 0), ("2", ("2", 2), 0), ("3", ("2", 2), 1), ("../1", ("2", 2), 2), ("1", ("1", 5), 2)), 1):
        log.release(str(epoch), "fraud", version, 1_000 * min(epoch, 3), "first" if epoch == 1 else "better", "test")
        assert eventually(lambda expected=expected, refused=refused: _scored(judge) == expected and caplog.text.count("refused") == refused)
    log.close()
    capsys.readouterr()
    for at, expected in (("1000", "1"), ("1999", "1"), ("2000", "2"), ("9000", "1")):
        assert main(["live", "--model", "fraud", "--at", at, "--json"]) == 0
        assert msgspec.json.decode(capsys.readouterr().out)["live"]["champion"] == expected
    assert main(["live", "--model", "fraud", "--at", "999"]) == 1
    assert main(["live", "--model", "fraud", "--history"]) == 0
    assert capsys.readouterr().out.count("\n") == 6


def test_rolling_back_again_goes_one_further_and_never_forward() -> None:
    chain = Chain()
    assert chain.before("m") is None
    steps = (("a", "1", None), ("b", "2", "1"), ("c", "3", "2"), (f"{ROLLBACK}c", "2", "1"), ("again", "2", "1"),
             (f"{ROLLBACK}b", "1", None), ("d", "3", "1"), ("e", "1", "3"))
    for offset, (release_id, version, before) in enumerate(steps):
        assert chain.take(offset, chain.following(release_id, "m", version, offset, "", ""))
        assert chain.before("m") == before, release_id


def test_while_releases_are_paused_only_people_release(kafka: str) -> None:
    log = ReleaseLog(kafka)
    log.release("1", "paused", "1", 1, "", "")
    log.release("hold", "paused", "1", 2, "", "person", paused=True)
    assert log.release("2", "paused", "2", 3, "", "runner", instead_of="1") is None
    by_hand = log.release("3", "paused", "3", 4, "", "person")
    assert by_hand is not None
    assert by_hand.paused, "until it is said otherwise"
    log.release("on", "paused", "3", 5, "", "person", paused=False)
    assert log.release("4", "paused", "4", 6, "", "runner", instead_of="3") is not None
    log.close()


def test_a_person_releases_goes_back_and_sees_which_versions_there_are(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("HOME", tmp_path), ("KAFKA", runtime.kafka), ("REDIS", runtime.redis)):
        monkeypatch.setenv(f"HEADRACE_{name}", str(value))
    settings = Settings(home=tmp_path)

    def said(*words: str) -> Any:
        assert main([*words, "--json"]) == 0, capsys.readouterr().err
        return msgspec.json.decode(capsys.readouterr().out)

    def refused(*words: str) -> str:
        assert main([*words]) not in (0, 1)
        return capsys.readouterr().err

    assert said("models", "list") == []
    assert [register_small_model(settings) for _ in range(2)] == ["1", "2"]
    assert "nothing was released" in refused("release", "rollback", "--why", "x")
    assert said("release", "champion", "fraud@1", "--why", "the first")["released"]["epoch"] == 1
    assert said("release", "champion", "fraud@2", "--why", "better", "--dry-run")["released"] is None
    assert said("release", "champion", "fraud@2", "--why", "better")["released"]["epoch"] == 2
    assert said("release", "champion", "fraud@2", "--why", "better")["released"]["epoch"] == 2, "said twice, done once"
    assert [each["version"] for each in said("models", "list") if each["live"]] == ["2"]
    assert [each["state"].partition(" until ")[0] for each in said("models", "list")] == ["previous, shadow", "champion"]
    assert said("release", "rollback", "--why", "worse")["version"] == "1"
    assert champion(settings.models, "fraud") == settings.models / "fraud" / "1", "the pointer follows"
    assert "nothing was live" in refused("release", "rollback", "--why", "worse")
    assert said("release", "pause", "--why", "holidays")["released"]["paused"]
    assert not said("release", "resume", "--why", "back")["released"]["paused"]
    assert "has no version '9'" in refused("release", "champion", "fraud@9", "--why", "x")
    assert "names no version" in refused("release", "champion", "fraud", "--why", "x")
    assert said("models", "show", "fraud@1")["live"]
    assert "has no version '9'" in refused("models", "compare", "fraud@1", "fraud@9", "--shadow")
    assert "has its deadline after" in refused("release", "canary", "fraud@2", "--hold", "6h", "--deadline", "3h", "--why", "x")
    assert said("models", "compare", "fraud@1", "fraud@2")["different"]["version"] == ["1", "2"]


def test_what_goes_live_by_hand_is_on_the_chain_where_there_is_one(kafka: str, redis_url: str, tmp_path: Path) -> None:
    assert record_release(Settings(home=tmp_path), "hand", "1", "the first", by="train") is None, "trained on tables alone"
    settings = Settings(home=tmp_path, kafka=kafka, redis=SecretStr(redis_url))
    made = [record_release(settings, "hand", version, "", by="train") for version in ("1", "1", "2", "1")]
    assert [(release.epoch, release.champion) for release in made if release] == [(1, "1"), (1, "1"), (2, "2"), (3, "1")]
    assert [release.champion for release in _history(kafka, "hand")] == ["1", "2", "1"]


def test_what_was_promoted_while_no_engines_ran_is_released_once_and_else_the_pointer_follows(runtime: Runtime, tmp_path: Path) -> None:
    settings, at = Settings(home=tmp_path, time="replay"), Endpoints(runtime.kafka, runtime.redis)
    assert adopt_champions(settings, at) == []
    promote_small_model(settings.models, "1")
    (first,) = adopt_champions(settings, at)
    assert (first.champion, first.epoch, first.at_ms) == ("1", 1, 0), "before anything was scored no wall clock stands in"
    assert adopt_champions(settings, at) == []
    second = write_small_model(settings.models, "2", SERVICE)
    log = ReleaseLog(runtime.kafka)
    log.release("r", "fraud", "2", 5, "better", "runner")
    log.close()
    assert adopt_champions(settings, at) == [], "its writer died before it moved the pointer"
    assert champion(settings.models, "fraud") == second


def _release_five(kafka: str, model: str, who: int) -> None:
    log = ReleaseLog(kafka)
    for number in range(5):
        log.release(f"{who}-{number}", model, f"v{who}{number}", number, "", str(who))
    log.close()


def _write_and_die(kafka: str, model: str) -> None:
    log = ReleaseLog(kafka)
    publish: Callable[[Release], None] = log._publish

    def then_die(release: Release) -> None:
        publish(release)
        os.kill(os.getpid(), signal.SIGKILL)

    stubbed: Any = log
    stubbed._publish = then_die
    log.release("once", model, "1", 5, "", "")


def _scored(judge: Judge) -> tuple[str | None, int | None]:
    """(model version, epoch) of an event that is scored now."""
    judge.refresh(lambda: None)
    (scored,) = judge.predict([Arrived(Transaction("e", 1, "c1", "p1", 1), 0, 0, 1, False)], None, 1)
    prediction = msgspec.json.decode(scored.value)
    return prediction["model_version"], prediction["epoch"]


def _history(kafka: str, model: str) -> list[Release]:
    log = ReleaseLog(kafka)
    try:
        return log.catch_up().history(model)
    finally:
        log.close()
