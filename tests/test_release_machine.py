"""What may follow what in a release: laws that hold after any actions of anybody, and the reason of each refusal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.releases import BUCKETS, RELEASE, Chain, Release
from services.release_machine import Move, Refusal, next_release, whole_steps
from services.standing import standings

VERSIONS = st.sampled_from(["1", "2", "3"])
STEPS = st.lists(st.integers(-5, BUCKETS + 5), max_size=4).map(tuple)
MOVES = st.fixed_dictionaries({
    "action": st.sampled_from(["champion", "canary", "canary", "advance", "advance", "rollback", "pause", "resume", "shadow"]),
    "by": st.sampled_from(["person", "guard", "runner"]), "version": VERSIONS, "at_ms": st.integers(0, 50),
    "steps": st.one_of(STEPS, st.just((100, 5000, BUCKETS)), st.just((BUCKETS,))), "shadows": st.lists(VERSIONS, max_size=2).map(tuple),
    "rule": st.sampled_from(["guardrails", "losses", "person"]), "epoch": st.none() | st.integers(0, 6)})


def move(number: int, **told: Any) -> Move:
    return Move(told.pop("action"), f"r{number}", "m", told.pop("by", "person"), told.pop("at_ms", number), "why", **told)


def walked(*steps: dict[str, Any]) -> tuple[Chain, list[Release | Refusal]]:
    """The chain after the moves, each written where it is allowed, and what each was answered."""
    chain, answers = Chain(), []
    for number, told in enumerate(steps):
        made = next_release(chain, move(number, **told))
        answers.append(made)
        if isinstance(made, Release) and made != chain.current("m"):
            assert chain.take(number, made)
    return chain, answers


@settings(max_examples=600, deadline=None)
@given(st.lists(MOVES, max_size=25))
def test_laws_hold_after_any_moves(told: list[dict[str, Any]]) -> None:
    chain = Chain()
    for number, each in enumerate(told):
        live, asked = chain.current("m"), move(number, **each)
        made = next_release(chain, asked)
        assert made == next_release(chain, asked), "a pure function"
        if isinstance(made, Refusal):
            assert made.fact
            assert made.hint
            continue
        if made == live:
            continue
        assert chain.take(number, made), "what the machine allows counts"
        assert RELEASE.decode(msgspec.json.encode(made)) == made
        _check_step(live, made, asked)
    history = chain.history("m")
    assert all(release.canary is None or history[0].champion for release in history)


def _check_step(live: Release | None, after: Release, asked: Move) -> None:
    if live is None:
        assert asked.action == "champion"
        return
    canary = after.canary
    deciding = {after.champion, *(() if canary is None else (canary.version,))}
    assert len(deciding) == (1 if canary is None else 2), "a candidate is not the champion"
    assert not deciding & set(after.shadows), "who decides is in no shadow"
    assert after.at_ms >= live.at_ms
    if after.champion != live.champion:
        assert asked.action in ("champion", "rollback") or (asked.action == "advance" and live.canary is not None
                                                            and live.canary.version == after.champion)
        assert canary is None
    if live.canary is not None and canary is not None:
        assert (canary.version, canary.salt, canary.began_epoch) == (live.canary.version, live.canary.salt, live.canary.began_epoch)
        assert canary.share >= live.canary.share, "who is in stays in"
        assert (canary.share > live.canary.share) == (asked.action == "advance")
    if live.canary is not None and asked.action == "rollback":
        assert (after.champion, canary) == (live.champion, None), "ending a canary moves nobody else"
    if live.paused and asked.automatic:
        assert asked.action == "rollback", "safety goes on, nothing else does"
    if asked.epoch is not None:
        assert asked.epoch == live.epoch, "what was decided on another state is not done"


@given(st.lists(MOVES, max_size=20), st.lists(MOVES, min_size=2, max_size=2))
def test_of_two_that_decide_on_the_same_state_one_wins_and_the_other_is_told(told: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    chain, _ = walked(*told)
    live, at = chain.current("m"), len(told)
    epoch = live.epoch if live is not None else None
    made = [next_release(chain, move(at + number, **(each | {"epoch": epoch}))) for number, each in enumerate(two)]
    first, second = made
    if isinstance(first, Refusal) or isinstance(second, Refusal) or live is None or live in (first, second):
        return
    assert chain.take(at, first)
    assert not chain.take(at + 1, second), "its predecessor is not the last that counted"
    again = next_release(chain, move(at + 1, **(two[1] | {"epoch": epoch})))
    assert isinstance(again, Refusal)
    assert f"epoch {first.epoch}" in again.fact


def test_a_canary_goes_step_by_step_and_its_version_is_the_champion_after_the_last() -> None:
    chain, answers = walked(
        {"action": "champion", "version": "1"}, {"action": "canary", "version": "2", "steps": (100, 500, BUCKETS)}, {"action": "advance"},
        {"action": "advance"}, {"action": "rollback"})
    seen = [(each.champion, each.canary and each.canary.share, each.shadows) for each in answers if isinstance(each, Release)]
    assert seen == [("1", None, []), ("1", 100, []), ("1", 500, []), ("2", None, ["1"]), ("1", None, [])], "the old champion scores along"
    assert chain.before("m") is None


def test_ending_a_canary_leaves_what_a_rollback_goes_to() -> None:
    chain, _ = walked({"action": "champion", "version": "1"}, {"action": "champion", "version": "2"}, {"action": "canary", "version": "3"},
                      {"action": "rollback"})
    live: Any = chain.current("m")
    assert (live.champion, live.canary, chain.before("m")) == ("2", None, "1")


def test_a_guard_that_stops_and_asks_is_answered_by_advancing_or_ending() -> None:
    begin: tuple[dict[str, Any], ...] = ({"action": "champion", "version": "1"}, {"action": "canary", "version": "2"})
    for answer in ("advance", "rollback", "resume"):
        chain, _ = walked(*begin, {"action": "pause", "by": "guard"}, {"action": answer})
        live: Any = chain.current("m")
        assert not live.paused, answer
    chain, answers = walked(*begin, {"action": "pause"}, {"action": "advance"})
    live = chain.current("m")
    assert live.paused, "what a person holds stays held"
    _, answers = walked(*begin, {"action": "pause"}, {"action": "advance", "by": "guard"}, {"action": "rollback", "by": "guard"})
    assert isinstance(answers[-2], Refusal)
    assert isinstance(answers[-1], Release)


@pytest.mark.parametrize(("before", "asked", "fact"), [
    ((), {"action": "canary", "version": "2"}, "nothing was released"),
    (({"action": "champion", "version": "1"},), {"action": "advance"}, "no version of m is in canary"),
    (({"action": "champion", "version": "1"},), {"action": "rollback"}, "nothing was live"),
    (({"action": "champion", "version": "1"},), {"action": "canary", "version": "1"}, "is the champion"),
    (({"action": "champion", "version": "1"},), {"action": "canary", "version": "2", "steps": (500, 100)}, "do not rise"),
    (({"action": "champion", "version": "1"},), {"action": "canary", "version": "2", "rule": "losses"}, "held at one share"),
    (({"action": "champion", "version": "1"},), {"action": "canary", "version": "2", "hold_ms": 6, "deadline_ms": 3}, "has its deadline"),
    (({"action": "champion", "version": "1"},), {"action": "shadow", "shadows": ("1",)}, "decides"),
    (({"action": "champion", "version": "1"}, {"action": "canary", "version": "2"}), {"action": "champion", "version": "3"}, "in canary"),
    (({"action": "champion", "version": "1"}, {"action": "canary", "version": "2"}), {"action": "canary", "version": "3"}, "in canary at"),
    (({"action": "champion", "version": "1"}, {"action": "canary", "version": "2", "rule": "person"}),
     {"action": "advance", "by": "guard"}, "decided by a person"),
    (({"action": "champion", "version": "1"},), {"action": "champion", "version": "2", "instead_of": "3"}, "judged against 3"),
], ids=lambda x: str(x)[:24])
def test_what_is_refused_says_why(before: tuple[dict[str, Any], ...], asked: dict[str, Any], fact: str) -> None:
    _, answers = walked(*before, asked)
    made = answers[-1]
    assert isinstance(made, Refusal)
    assert fact in made.fact


def test_all_of_the_traffic_is_a_step_only_by_itself() -> None:
    assert whole_steps((100, BUCKETS)) == (100,)
    assert whole_steps((BUCKETS,)) == (BUCKETS,)


def test_records_from_before_there_were_canaries_still_count() -> None:
    old = (b'{"release_id":"a","model":"m","epoch":1,"follows":-1,"champion":"1","previous":null,"why":"","by":"train","at_ms":5}',
           b'{"release_id":"rollback:b","model":"m","epoch":2,"follows":0,"champion":"2","previous":"1","why":"","by":"person","at_ms":6,'
           b'"evidence":null,"paused":true}')
    chain = Chain()
    assert [chain.take(offset, RELEASE.decode(value)) for offset, value in enumerate(old)] == [True, True]
    live: Any = chain.current("m")
    assert (live.champion, live.action, live.canary, live.shadows, live.paused) == ("2", "champion", None, [], True)


def test_each_version_is_told_for_what_it_is() -> None:
    versions = ["1", "2", "3", "4"]

    def told(*steps: dict[str, Any]) -> list[str]:
        chain, _ = walked(*steps)
        live = chain.current("m")
        return [str(each) for each in standings(chain, "m", versions, live.champion if live else "1", 90).values()]

    first, second = {"action": "champion", "version": "1"}, {"action": "champion", "version": "2"}
    canary = {"action": "canary", "version": "3", "steps": (500, 5000)}
    assert told() == ["champion", "", "", "challenger"], "by the pointer, where there is no chain"
    assert told(first) == ["champion", "", "", "challenger"]
    replaced = "shadow until 1970-01-01T00:00:00.091Z"
    assert told(first, second) == [f"previous, {replaced}", "champion", "", "challenger"]
    assert told(first, second, canary) == [f"previous, {replaced}", "champion", "canary 5 %", "challenger"]
    assert told(first, second, canary, {"action": "advance"})[2] == "canary 50 %"
    assert told(first, second, canary, *[{"action": "advance"}] * 2) == ["", "previous, shadow", "champion", "challenger"]
    assert told(first, second, {"action": "rollback"}) == ["champion", "", "", "challenger"]
    assert told(first, {"action": "shadow", "shadows": ("3", "4")}) == ["champion", "", "shadow", "shadow, challenger"]
    assert told({"action": "champion", "version": "4"}, first)[3] == f"previous, {replaced}", "it was the champion"
