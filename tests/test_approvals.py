"""Approval: bound to the evidence, never the trainer's own, and without it a model of risk class person is not released."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from feature_repo import fraud
from feature_repo.fraud import FRAUD
from feature_repo.models import CanaryPolicy, UseCase
from jobs.gates import Evidence, evidence_hash
from jobs.retraining import Plan, Verdict
from schemas.approvals import Approval
from schemas.errors import BundleError
from schemas.monitoring import RetrainRequest
from schemas.settings import Settings
from services.approvals import Seen, missing_approval, read_approvals, seen_of, unapproved
from services.cli import main
from services.release_log import ReleaseLog
from services.release_machine import Refusal
from services.releasing import read_chain
from services.runner import Runner
from services.runtime.embedded import Runtime
from tests.small_model import register_small_model

PEOPLE = st.sampled_from(["ann", "bob", "carl"])


@given(st.lists(st.tuples(st.sampled_from(["1", "2"]), st.sampled_from(["e1", "e2"]), PEOPLE), max_size=6), PEOPLE)
def test_a_version_is_approved_by_somebody_else_on_this_very_evidence(said: list[tuple[str, str, str]], trainer: str) -> None:
    approvals = [Approval(str(n), "m", version, evidence, by, "", 0) for n, (version, evidence, by) in enumerate(said)]
    refusal = unapproved("person", Seen("m", "1", "e1", trainer), approvals)
    assert (refusal is None) == any((version, evidence) == ("1", "e1") and by != trainer for version, evidence, by in said)
    assert unapproved("automatic", Seen("m", "1", "e1", trainer), []) is None


@pytest.mark.parametrize(("said", "fact"), [
    ([], "is not approved"), ([("1", "e1", "ann")], "approved by ann only, who trained it"), ([("1", "e0", "bob")], "has changed since")])
def test_why_it_is_not_approved_is_said(said: list[tuple[str, str, str]], fact: str) -> None:
    approvals = [Approval(str(n), "m", version, evidence, by, "", 0) for n, (version, evidence, by) in enumerate(said)]
    refusal = unapproved("person", Seen("m", "1", "e1", "ann"), approvals)
    assert refusal is not None
    assert fact in refusal.fact
    assert "--evidence e1" in refusal.hint


def test_a_model_that_asks_for_a_person_is_released_only_with_one(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("HOME", tmp_path), ("KAFKA", runtime.kafka), ("REDIS", runtime.redis), ("PERSON", "ann")):
        monkeypatch.setenv(f"HEADRACE_{name}", str(value))
    careful = dataclasses.replace(FRAUD, risk_class="person")
    monkeypatch.setattr("feature_repo.use_cases.USE_CASES", (UseCase("fraud", (careful,), fraud.USE_CASE.emissions),))
    settings = Settings(home=tmp_path, kafka=runtime.kafka, redis=SecretStr(runtime.redis), person="ann")

    def said(*words: str) -> Any:
        assert main([*words, "--json"]) == 0, capsys.readouterr().err
        return msgspec.json.decode(capsys.readouterr().out)

    def refused(*words: str) -> str:
        assert main([*words]) not in (0, 1)
        return capsys.readouterr().err

    assert [register_small_model(settings) for _ in range(2)] == ["1", "2"]
    release = ("release", "champion", "fraud@1", "--why", "good")
    assert "is not approved" in refused(*release)
    evidence = said("models", "show", "fraud@1")["evidence"]
    approve = ("models", "approve", "fraud", "1", "--why", "I looked", "--evidence")
    assert "ann trained fraud@1" in refused(*approve, evidence)
    monkeypatch.setenv("HEADRACE_PERSON", "bob")
    assert "not 123" in refused(*approve, "123")
    assert said(*approve, evidence)["by"] == "bob"
    assert said(*release)["released"]["epoch"] == 1
    assert "is not approved" in refused("release", "canary", "fraud@2", "--why", "good")
    assert "is not approved" in refused("release", "canary", "fraud@2", "--why", "good", "--dry-run")

    runner = Runner(settings, "runner-1", Plan(), str)
    request = RetrainRequest("r1", "fraud", "1", "v", "h", "drift:1", "why", 5, {}, [])
    verdict = Verdict("r1", "fraud", 5, "2", True, "", "", [], "e")
    assert not runner._release(request, verdict)
    said("models", "approve", "fraud", "2", "--why", "I looked", "--evidence", said("models", "show", "fraud@2")["evidence"])
    gates = [Evidence("quality", "PASS", "better", {"b": 1, "a": [1.5]})]
    path = settings.models / "fraud" / "evidence" / "2.json"
    path.parent.mkdir()
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(verdict, evidence=gates, evidence_hash=evidence_hash(gates))))
    assert "has changed since" in refused("release", "canary", "fraud@2", "--why", "good"), "other evidence voids it"
    assert not runner._release(request, verdict)
    said("models", "approve", "fraud", "2", "--why", "again", "--evidence", evidence_hash(gates))
    assert len(read_approvals(runtime.kafka)) == 3
    assert runner._release(request, verdict)
    live: Any = read_chain(runtime.kafka).current("fraud")
    assert (live.champion, live.by) == ("2", "runner")
    path.write_bytes(path.read_bytes().replace(b"better", b"worse!"))
    with pytest.raises(BundleError, match="was changed"):
        missing_approval(settings, runtime.kafka, "person", "fraud", "2")
    assert said("release", "rollback", "--why", "worse")["version"] == "1", "going back waits for nobody"


def test_a_retrain_begins_as_a_canary_where_the_policy_says_so(kafka: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, kafka=kafka)
    runner = Runner(settings, "runner-1", Plan(), str)
    name = "canaried"
    runner._models[name] = dataclasses.replace(FRAUD, name=name, canary=CanaryPolicy((200, 4000), 5, 50, 0.01))
    releases = ReleaseLog(kafka)
    releases.release("first", name, "1", 5, "", "train")
    live: Any = releases.act(runner._move(RetrainRequest("r1", name, "1", "v", "h", "drift:1", "why", 7, {}, []), "2", "e"))
    refused = releases.act(runner._move(RetrainRequest("r2", name, "1", "v", "h", "drift:2", "why", 8, {}, []), "3", "e"))
    releases.close()
    assert (live.champion, live.action, live.evidence, live.canary.version) == ("1", "canary", "e", "2")
    assert (live.canary.steps, live.canary.hold_ms, live.canary.deadline_ms, live.canary.alpha) == ((200, 4000), 5, 50, 0.01)
    assert isinstance(refused, Refusal), "one at a time"


def test_evidence_of_a_version_without_gates_is_its_signed_manifest(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, person="ann")
    register_small_model(settings)
    seen = seen_of(settings, "fraud", "1")
    assert seen.trainer == "ann"
    assert not isinstance(unapproved("person", seen, [Approval("a", "fraud", "1", seen.evidence, "bob", "", 0)]), Refusal)
