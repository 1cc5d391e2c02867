"""Versions of views: what is recorded, what is different, and what is live after each step."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from feature_repo import use_cases, versions
from feature_repo.changes import changes, same_features, to_build
from feature_repo.fraud import CARD_SPEND, SERVICE, TERMINAL_ACTIVITY, USE_CASE, VIEWS
from feature_repo.versions import (
    Registry,
    adopted,
    building,
    collected,
    exclusive,
    read_registry,
    retired,
    rolled_back,
    switched,
    view_of,
    write_registry,
)
from feature_repo.views import DAY_MS, FUNCTIONS, HOUR_MS, MINUTE_MS, Column, Feature, FeatureService, FeatureView, RequestFeature
from schemas.errors import DefinitionError, SettingsError
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings
from services.cli import main
from streams.app import FedApplier

OLD = CARD_SPEND.versioned_name
COLUMNS = (Column("amount_minor", scale=100), Column("terminal_id", hashed=True), Column("revision", revision=True))


HOLDS = """
import signal, sys
from pathlib import Path
from feature_repo.versions import exclusive
from schemas.settings import Settings
with exclusive(Settings(home=Path(sys.argv[1]))):
    print("held", flush=True)
    signal.pause()
"""


def changed(service: FeatureService = SERVICE) -> FeatureService:
    """The service with one window changed, one feature added and one removed, all in one view."""
    features = [dataclasses.replace(f, window_ms=15 * MINUTE_MS) if f.name == "card_count_10m" else f for f in CARD_SPEND.features
                if f.name != "card_count_1m"]
    view = dataclasses.replace(CARD_SPEND, features=(*features, Feature("card_amount_sum_1d", "sum", DAY_MS, "amount_minor")))
    return dataclasses.replace(service, views=(view, *service.views[1:]))


def case(service: FeatureService) -> Any:
    return dataclasses.replace(USE_CASE, models=(dataclasses.replace(USE_CASE.models[0], service=service),))


@st.composite
def a_view(draw: st.DrawFn) -> FeatureView:
    made = []
    for i, function in enumerate(draw(st.lists(st.sampled_from(FUNCTIONS), min_size=1, max_size=5))):
        hashed = function in ("count_distinct", "count_same")
        made.append(Feature(f"f{i}", function, draw(st.integers(1, 90)) * HOUR_MS, "terminal_id" if hashed else "amount_minor",
                            "amount_minor" if function == "ratio" else None, 0 if hashed else draw(st.sampled_from((0, HOUR_MS)))))
    return FeatureView("v", "card_id", "transactions", draw(st.permutations(COLUMNS).map(tuple)), tuple(made),
                       delay_ms=draw(st.integers(0, DAY_MS)), include_current=draw(st.booleans()), peak_per_s=draw(st.floats(0.1, 10)))


@given(a_view())
def test_a_view_is_made_again_from_the_registry_as_it_was(view: FeatureView) -> None:
    registry = building(Registry(), [view])
    again = msgspec.json.decode(msgspec.json.encode(registry), type=Registry)
    assert again == registry
    assert view_of(again.versions[view.versioned_name].definition) == view


@given(a_view(), a_view())
def test_two_versions_share_the_features_whose_whole_meaning_is_the_same(one: FeatureView, other: FeatureView) -> None:
    assert same_features(one, one) == [feature.name for feature in one.features]
    assert set(same_features(one, other)) == set(same_features(other, one))
    if one.definition_hash == other.definition_hash:
        assert same_features(one, other) == [feature.name for feature in one.features]
    scaled = dataclasses.replace(one, columns=tuple(dataclasses.replace(c, scale=c.scale + 1) for c in one.columns))
    assert set(same_features(one, scaled)) == {f.name for f in one.features if f.column is None}


def test_a_difference_names_what_was_added_removed_and_changed() -> None:
    registry = adopted(Registry(), [SERVICE])
    assert changes(registry, [SERVICE]) == []
    assert to_build(registry, [SERVICE]) == []
    new = changed()
    (service,) = changes(registry, [new])
    (view,) = service.views
    assert (service.old, service.new) == (SERVICE.definition_hash, new.definition_hash)
    assert (view.old, view.new) == (OLD, new.views[0].versioned_name)
    assert (view.added, view.removed) == (("card_amount_sum_1d",), ("card_count_1m",))
    assert view.changed == ("card_count_10m: window_ms 600000 -> 900000",)
    assert to_build(registry, [new]) == [new.views[0]]
    kept = same_features(CARD_SPEND, new.views[0])
    assert len(kept) == len(CARD_SPEND.features) - 2
    assert not {"card_count_1m", "card_count_10m"} & set(kept)


def test_what_is_of_the_whole_view_leaves_no_feature_the_same() -> None:
    patient = dataclasses.replace(CARD_SPEND, allowed_lateness_ms=2 * DAY_MS)
    (service,) = changes(adopted(Registry(), [SERVICE]), [dataclasses.replace(SERVICE, views=(patient, *VIEWS[1:]))])
    assert service.views[0].settings == (f"allowed_lateness_ms {DAY_MS} -> {2 * DAY_MS}",)
    assert same_features(CARD_SPEND, patient) == []


def test_a_service_that_was_never_applied_is_live_as_declared() -> None:
    assert changes(Registry(), [changed()]) == []
    assert to_build(Registry(), [changed()]) == []


def test_the_old_version_is_live_until_the_switch_and_fed_until_it_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, new = Settings(home=tmp_path), changed()
    view = new.views[0]

    def seen() -> tuple[list[str], list[str], list[str]]:
        return ([v.versioned_name for v in use_cases.views(settings)][:1], [v.versioned_name for v in use_cases.fed_views(settings)][3:],
                [v.versioned_name for v in use_cases.fed_views(settings, built=True)][3:])

    assert use_cases.services(settings) == (SERVICE,)
    assert use_cases.services(settings)[0] is SERVICE
    registry = write_registry(settings, Registry(), adopted(Registry(), [SERVICE]))
    monkeypatch.setattr(use_cases, "USE_CASES", (case(new),))
    assert use_cases.services(settings) == (SERVICE,)
    assert use_cases.find_model(settings, None, code=True).service == new
    assert seen() == ([OLD], [], [])
    registry = write_registry(settings, registry, building(registry, [view], [new]))
    for code in (new, SERVICE):  # a process that still runs the old code feeds and trims the new version as well
        monkeypatch.setattr(use_cases, "USE_CASES", (case(code),))
        assert seen() == ([OLD], [view.versioned_name], [])
        assert all(any(each in service.views for service in use_cases.fed_services(settings)) for each in (CARD_SPEND, view))
    monkeypatch.setattr(use_cases, "USE_CASES", (case(new),))
    registry = write_registry(settings, registry, switched(registry, [new], 1000, {}))
    assert seen() == ([view.versioned_name], [OLD], [OLD])
    assert use_cases.services(settings)[0] is new
    assert any(CARD_SPEND in service.views for service in use_cases.fed_services(settings))
    assert retired(registry, 999) == []
    back = rolled_back(registry, 2000, {})
    assert (back.names("live")[0], back.names("retired")) == (OLD, [view.versioned_name])
    assert to_build(back, [new]) == [], "it is still fed"
    assert rolled_back(rolled_back(registry, 2000, {}), 1000, {}).services == registry.services
    assert retired(registry, 1000) == [OLD]
    registry = write_registry(settings, registry, collected(registry, [OLD]))
    assert seen() == ([view.versioned_name], [], [])
    with pytest.raises(DefinitionError, match="were removed"):
        rolled_back(registry, 2000, {})


def test_a_version_that_was_given_up_is_built_again_and_its_keys_go_at_once() -> None:
    registry = adopted(Registry(), [SERVICE])
    first, second = changed().views[0], dataclasses.replace(CARD_SPEND, features=CARD_SPEND.features[:2])
    registry = building(building(registry, [first]), [second])
    assert registry.names("collected") == [first.versioned_name]
    assert to_build(registry, [changed()]) == [first]


def test_request_functions_are_the_codes_and_only_those_that_are_live() -> None:
    registry = adopted(Registry(), [SERVICE])
    more = dataclasses.replace(changed(), request=(*SERVICE.request, RequestFeature("more", lambda x: x["amount"])))
    assert versions.service_of(more, registry.services["fraud"], registry) == SERVICE
    (service,) = changes(registry, [more])
    assert service.request_added == ("more",)


def test_two_that_apply_at_once_do_not_overwrite_each_other(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    first = write_registry(settings, Registry(), adopted(Registry(), [SERVICE]))
    assert read_registry(settings) == first
    with pytest.raises(DefinitionError, match="somebody else"):
        write_registry(settings, Registry(), building(Registry(), [TERMINAL_ACTIVITY]))
    assert read_registry(settings) == first
    (tmp_path / "definitions.json").write_text("{")
    with pytest.raises(DefinitionError, match="not a registry"):
        read_registry(settings)


def test_one_at_a_time_and_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    held = subprocess.Popen([sys.executable, "-c", HOLDS, str(settings.home)], stdout=subprocess.PIPE)
    assert held.stdout is not None
    assert held.stdout.readline() == b"held\n"
    with pytest.raises(DefinitionError, match="somebody else"), exclusive(settings):
        pass
    held.kill()
    held.wait()
    with exclusive(settings):
        pass


def test_an_applier_feeds_what_is_recorded_and_goes_on_where_the_record_is_damaged(tmp_path: Path) -> None:
    settings, view = Settings(home=tmp_path, kafka="127.0.0.1:1", redis=SecretStr("redis://127.0.0.1:1")), changed().views[0]
    applier = FedApplier(TRANSACTIONS, settings, threading.Event())
    views, writer = applier._fed, applier._writer
    (tmp_path / "definitions.json").write_text("{")
    applier._renew()
    assert (applier._fed, applier._writer) == (views, writer)
    (tmp_path / "definitions.json").unlink()
    registry = write_registry(settings, Registry(), adopted(Registry(), [SERVICE]))
    applier._renew()
    assert applier._writer is writer, "the same versions are live"
    write_registry(settings, registry, building(registry, [view], [changed()]))
    applier._renew()
    assert applier._fed == [*applier._writer.marks.views] == [*views, view]
    assert applier._marks is applier._writer.marks


def test_a_model_on_features_that_are_not_live_is_no_champion(capsys: pytest.CaptureFixture[str]) -> None:
    days = ["--train", "2018-01-01..2018-01-02", "--test", "2018-01-09..2018-01-10"]
    assert main(["train", "--declared", "--promote", *days]) == SettingsError.exit_code
    assert "would not fit what is live" in capsys.readouterr().err


def test_every_order_of_steps_leaves_each_read_version_fed() -> None:
    """Whatever is applied after whatever: what a service reads is fed, and what is collected is read by nobody."""
    services = [SERVICE, changed(), dataclasses.replace(SERVICE, views=VIEWS[:2])]
    for order in itertools.product(range(len(services)), repeat=4):
        registry = adopted(Registry(), [SERVICE])
        for step, number in enumerate(order):
            registry = building(registry, to_build(registry, [services[number]]))
            registry = switched(registry, [services[number]], step, {})
            registry = collected(registry, retired(registry, step - 1))
            read = {name for composition in registry.services.values() for name in composition.views}
            assert read == set(registry.names("live")) == {view.versioned_name for view in services[number].views}
