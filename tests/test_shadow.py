"""Shadows: who scores beside the champion, exact pairs on the logged vector, and each pair once whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.bundle import Model, load_bundle
from feature_repo.fraud import FRAUD, SERVICE
from schemas.releases import ROLLBACK, Chain
from schemas.settings import Settings
from schemas.shadow import SHADOW, ShadowScore
from schemas.topics import shadow_topic
from services.cli import main
from services.ledger import end_offsets, read_topic
from services.runtime.embedded import Runtime
from services.shadow_list import NOBODY, maturity_ms, trial, watched
from services.shadow_place import read_dropped
from services.shadow_scores import prediction_decoder, scored_pairs
from tests.deadline import eventually
from tests.shadow_world import PARTITIONS, START_MS, make_predictions, publish_predictions, read_values, release_with_shadows
from tests.small_model import write_small_model

TOPIC = shadow_topic(SERVICE.predictions)
MONTH_MS = 30 * 86_400_000


@given(st.lists(st.tuples(st.sampled_from("123"), st.booleans(), st.sets(st.sampled_from("1234"), max_size=2)), min_size=1, max_size=12),
       st.integers(0, 40))
def test_the_replaced_version_shadows_for_one_maturity_unless_it_was_a_rollback(steps: list[tuple[str, bool, set[str]]], age: int) -> None:
    """Against a walk forwards: which version was replaced, when, and whether by a rollback."""
    chain = Chain()
    for n, (version, back, listed) in enumerate(steps):
        made = chain.following(f"{ROLLBACK if back else ''}{n}", "m", version, 10 * n, "", "")
        assert chain.take(n, msgspec.structs.replace(made, shadows=sorted(listed)))
    history = chain.history("m")
    replaced, since, live = None, 0, None
    for n, (version, back, listed) in enumerate(steps):
        if version != live:
            replaced, since, live = None if back else live, 10 * n, version
        found = watched(history, n + 1, age)
        for at_ms in (since, since + age, since + age + 1, 10 * n):
            expected = {*listed, *({replaced} if replaced and at_ms <= since + age else ())} - {version}
            assert found.versions(at_ms, version) == tuple(sorted(expected))
        begun = trial(history, n + 1)
        assert (begun.previous if begun else None) == replaced
    assert watched(history, None, age) == watched(history, len(steps) + 1, age) == NOBODY


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, Model]]:
    """Three versions with thresholds of their own; 2 is 1 under another name."""
    settings = Settings(home=tmp_path_factory.mktemp("shadow"), time="replay")
    found = {}
    for version, threshold in (("1", 0.5), ("2", 0.5), ("3", 0.2)):
        folder = write_small_model(settings.models, version, SERVICE, threshold=threshold)
        found[version] = load_bundle(folder, SERVICE, settings.key_folder)
    return settings, found


@examples(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), wanted=st.lists(st.sets(st.sampled_from("1239")), min_size=1, max_size=40))
def test_a_pair_is_the_score_of_the_logged_vector_to_the_bit(versions: tuple[Settings, dict[str, Model]], seed: int,
                                                             wanted: list[set[str]]) -> None:
    _, models = versions
    decode = prediction_decoder(FRAUD).decode
    made = [decode(value) for value in make_predictions(len(wanted), models["1"], 1, seed)]
    found = scored_pairs(made, [sorted(each) for each in wanted], models)
    for prediction, versions_, pairs in zip(made, wanted, found, strict=True):
        assert [pair.shadow_version for pair in pairs] == sorted(versions_ - {"9"}), "9 is not loaded"
        for pair in pairs:
            model = models[pair.shadow_version]
            alone = model.score(np.array([prediction.features], dtype=np.float64))[0]
            assert (pair.score, pair.alert) == (alone, alone >= model.threshold)
            assert (pair.champion_score, pair.champion_alert) == (prediction.score, prediction.alert)
            assert pair.shadow_version == "3" or pair.score == pair.champion_score, "another name, the same model"
            assert SHADOW.decode(msgspec.json.encode(pair)) == pair


def test_a_vector_of_other_features_has_no_pair(versions: tuple[Settings, dict[str, Model]]) -> None:
    _, models = versions
    (value,) = make_predictions(1, models["1"], 1)
    made = prediction_decoder(FRAUD).decode(value)
    assert len(scored_pairs([made], [["1"]], models)[0]) == 1
    assert scored_pairs([msgspec.structs.replace(made, service_hash="other")], [["1"]], models) == [[]]


@contextmanager
def shadow_process(settings: Settings, runtime: Runtime, log: Path) -> Any:
    ready = log.with_suffix(".ready")
    ready.unlink(missing_ok=True)
    told = {"HOME": settings.home, "KAFKA": runtime.kafka, "TIME": settings.time, "SHADOW_BEHIND": settings.shadow_behind,
            "READY_FILE": ready}
    environment = {**os.environ, **{f"HEADRACE_{name}": str(value) for name, value in told.items()}}
    command = [sys.executable, "-m", "services.shadow"]
    with log.open("ab") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            eventually(lambda: ready.exists() or process.poll() is not None)  # before that it does not hear SIGTERM
            yield process
        finally:
            process.kill()


def written(kafka: str) -> int:
    return sum(high for _, high in end_offsets(kafka, TOPIC).values())


def wrong(kafka: str, models: dict[str, Model], shadows: tuple[str, ...], missing: int = 0) -> list[str]:
    """What does not hold of the pairs of all predictions: each once for each shadow, but for ``missing`` predictions; right scores."""
    decode, made, found = prediction_decoder(FRAUD).decode, {}, Counter[str]()
    for message in read_topic(kafka, SERVICE.predictions):
        one = decode(message.value())
        made[one.prediction_id] = (message.partition(), one)
    wrongs = []
    for message in read_topic(kafka, TOPIC):
        pair: ShadowScore = SHADOW.decode(message.value())
        found[pair.shadow_id] += 1
        partition, prediction = made[pair.prediction_id]
        score = models[pair.shadow_version].score(np.array([prediction.features], dtype=np.float64))[0]
        if (message.partition(), pair.score, pair.champion_score) != (partition, score, prediction.score):
            wrongs.append(f"{pair.shadow_id} is {pair}")
    wrongs += [f"{name} {n} times" for name, n in found.items() if n > 1]
    return wrongs + ([] if len(found) == (len(made) - missing) * len(shadows) else [f"{len(found)} pairs of {len(made)} predictions"])


def test_a_shadow_that_is_killed_again_and_again_writes_each_pair_once(versions: tuple[Settings, dict[str, Model]], tmp_path: Path) -> None:
    settings, models = versions
    n, shadows = 6_000, ("2", "3")
    with Runtime(Settings(home=tmp_path, time="replay"), roles=()) as runtime:
        release_with_shadows(runtime.kafka, "first", "1", START_MS, (*shadows, "8"))  # of 8 there is no bundle
        publish_predictions(runtime.kafka, make_predictions(n, models["1"], 1))
        for kill in range(1, 4):
            with shadow_process(settings, runtime, tmp_path / "log") as process:
                eventually(lambda kill=kill: written(runtime.kafka) > kill * n // 2 or process.poll() is not None)
                process.send_signal(signal.SIGKILL)
        at_kills = written(runtime.kafka)
        behind = Settings(home=settings.home, time="replay", shadow_behind=1)  # a replay drops nothing
        with shadow_process(behind, runtime, tmp_path / "log") as process:
            eventually(lambda: written(runtime.kafka) >= 2 * n)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0, (tmp_path / "log").read_text()[-2000:]
        print(f"{at_kills} pairs before the last start")
        assert wrong(runtime.kafka, models, shadows) == []
        assert read_dropped(runtime.kafka, FRAUD.name, SERVICE.predictions, range(PARTITIONS)) == 0
        assert "no shadow" in (tmp_path / "log").read_text()
        # Negative control: a pair that is there twice is seen.
        producer = Producer({"bootstrap.servers": runtime.kafka})
        producer.produce(TOPIC, read_values(runtime.kafka, TOPIC)[0], partition=0)
        producer.flush(30)
        assert len(wrong(runtime.kafka, models, shadows)) >= 1


def test_who_is_too_far_behind_skips_and_counts_it(versions: tuple[Settings, dict[str, Model]], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings, models = versions
    n, live = 12_000, Settings(home=settings.home, time="live", shadow_behind=200)
    with Runtime(Settings(home=tmp_path, time="live"), roles=()) as runtime:
        release_with_shadows(runtime.kafka, "first", "1", START_MS, ("3",))
        publish_predictions(runtime.kafka, make_predictions(n, models["1"], 1))

        def dropped() -> int:
            return read_dropped(runtime.kafka, FRAUD.name, SERVICE.predictions, range(PARTITIONS))

        with shadow_process(live, runtime, tmp_path / "log") as process:  # killed as soon as it has skipped
            eventually(dropped)
            process.send_signal(signal.SIGKILL)
        with shadow_process(live, runtime, tmp_path / "log") as process:
            eventually(lambda: written(runtime.kafka) + dropped() >= n)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0, (tmp_path / "log").read_text()[-2000:]
        print(f"{dropped()} of {n} skipped")
        assert 0 < dropped() < n
        assert wrong(runtime.kafka, models, ("3",), dropped()) == []
        for name, value in (("HOME", settings.home), ("KAFKA", runtime.kafka), ("REDIS", runtime.redis)):
            monkeypatch.setenv(f"HEADRACE_{name}", str(value))
        capsys.readouterr()
        code, (out, err) = main(["status", "--interval", "0.1"]), capsys.readouterr()
        assert code == 0, err
        assert f"predictions skipped: {dropped()} fraud" in out


def test_the_maturity_is_that_of_the_monitors() -> None:
    assert FRAUD.drift is not None
    assert maturity_ms(FRAUD) == FRAUD.drift.age_ms
