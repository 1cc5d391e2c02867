"""What a device scores is what a scorer scores, to the last bit, with Python, numpy and onnxruntime alone.

Over 300 lines: one exported folder, which takes long to make, serves all of it.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from feature_repo import churn, fraud, kernel
from feature_repo.appends import SetWriter
from feature_repo.bundle import Model, load_bundle
from feature_repo.contributions import contributions
from feature_repo.layout import floor_record, packer, rows
from feature_repo.online import Reading, SetReader
from feature_repo.oracle import Record, feature_values
from feature_repo.trees import read_trees
from feature_repo.vector import VectorBuilder
from feature_repo.views import DAY_MS, FeatureService, FeatureView
from schemas.churn import InvoiceLine, ScoreRequest
from schemas.errors import BundleError, DefinitionError
from schemas.fraud import OUTCOMES, TRANSACTION, TRANSACTIONS, Outcome, Transaction
from schemas.settings import Settings
from services.cli import main
from services.edge import export as exporting
from services.edge import scorer
from services.edge.export import described, export
from services.edge.source_text import module_of
from tests.small_model import write_small_model
from tests.test_kernel import as_rows, mode_of, random_records, same, view_of

ROOT = Path(__file__).parents[1]
NOW = 1_533_000_000_000
CARD, TERMINAL = "596", "3156"


@pytest.mark.parametrize("n", [*range(0, 300), 511, 512, 513, 1023, 1024])
def test_ids_are_hashed_as_the_library_does(n: int) -> None:
    data = random.Random(n).randbytes(n)
    assert scorer.xxh3(data) == xxh3_64_intdigest(data)


def view_as_data(view: FeatureView) -> dict[str, Any]:
    return exporting._view(view)


@pytest.mark.parametrize("view", [view_of(delay, include) for delay in (0, 15) for include in (True, False)],
                         ids=lambda v: f"delay{v.delay_ms}-current{v.include_current}")
@pytest.mark.parametrize("size", [0, 1, 5, 40, 400])
def test_values_are_those_of_kernel_and_oracle_on_hostile_sets(view: FeatureView, size: int) -> None:
    """Copies, revisions, ties, negative and huge numbers, delays, the event in the set or not."""
    r, told = random.Random(f"{view.delay_ms}{view.include_current}{size}edge"), view_as_data(view)
    for _ in range(60):
        records = random_records(r, size)
        t, current = r.randrange(0, 1400), r.choice([None, r.choice(records) if records else None, random_records(r, 1)[0]])
        rows_, own = as_rows(view, records), as_rows(view, [current or Record(0, 0, (0,) * 4)])
        values = scorer.view_values(told, rows_, t, own[0].tolist() if current is not None else None)
        by_kernel = kernel.read_sets(view, rows_, np.zeros(1, np.int64), np.array([size]), np.array([t]), own,
                                     np.array([mode_of(view, current)]))[0]
        assert values is not None
        assert np.array(values).view(np.int64).tolist() == canonical(by_kernel[0]).view(np.int64).tolist()
        assert same(values, feature_values(view, records, t, current))


def canonical(values: Any) -> Any:
    """One NaN for all of them."""
    return np.where(np.isnan(values), np.nan, values)


@pytest.mark.parametrize("delay_ms", [0, 15])
def test_a_read_below_the_floor_has_no_values_where_the_kernel_refuses_it(delay_ms: int) -> None:
    view, refusals = view_of(delay_ms, True), 0
    for floor in range(0, 400, 7):
        raw = np.concatenate((rows(view, floor_record(view, floor)), as_rows(view, random_records(random.Random(floor), 20))))
        own = as_rows(view, random_records(random.Random(-floor), 1))
        stamps = kernel.read_sets(view, raw, np.zeros(1, np.int64), np.array([len(raw)]), np.array([1200]), own, np.array([1]))[1]
        values = scorer.view_values(view_as_data(view), raw, 1200, own[0].tolist())
        assert (values is None) == bool(stamps[0, kernel.REFUSED])
        refusals += values is None
    assert 0 < refusals < 58


def history(r: random.Random, n: int) -> tuple[list[Transaction], list[Outcome]]:
    paid = [Transaction(f"{r.randrange(n)}", NOW - r.randrange(40 * DAY_MS) // 1000 * 1000, r.choice([CARD, "1"]),
                        r.choice([TERMINAL, "2"]), r.randrange(1, 90_000)) for _ in range(n)]
    known = [Outcome(t.event_id, t.event_time, t.card_id, t.terminal_id, r.random() < 0.3, r.randrange(3))
             for t in paid if r.random() < 0.7]
    return paid + r.sample(paid, n // 10), known + r.sample(known, len(known) // 10)


def sets_of(service: FeatureService, of_source: dict[str, Sequence[Any]]) -> Reading:
    """What Redis would hold of these events."""
    sets: list[dict[str, bytes | None]] = []
    for view in service.views:
        pack, held = packer(view), {}
        for event in of_source[view.source]:
            entity = getattr(event, view.entity)
            held[entity] = held.get(entity, b"") + pack(event)
        sets.append(held)
    return Reading(((),) * len(sets), tuple(sets))


def held(service: FeatureService, reading: Reading) -> dict[tuple[str, str], Any]:
    return {(view.versioned_name, entity): rows(view, value or b"")
            for view, of_view in zip(service.views, reading.sets, strict=True) for entity, value in of_view.items()}


def plain(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("edge-home")
    write_small_model(home / "models", "1", fraud.SERVICE, defaults={"card_count_1d": 3.0, "card_amount_mean_30d": 50.0})
    return Settings(home=home, kafka=None, redis=None)


@pytest.fixture(scope="module")
def model(home: Settings) -> Model:
    return load_bundle(home.models / "fraud" / "1", fraud.SERVICE, home.key_folder)


@pytest.fixture(scope="module")
def reading() -> Reading:
    paid, known = history(random.Random(5), 400)
    return sets_of(fraud.SERVICE, {TRANSACTIONS: paid, OUTCOMES: known})


@pytest.fixture
def folder(home: Settings, reading: Reading, tmp_path: Path) -> Path:
    done = export(home, fraud.FRAUD, home.models / "fraud" / "1", tmp_path / "till", NOW, held(fraud.SERVICE, reading))
    assert done.folder == tmp_path / "till"
    assert [path.name for path in tmp_path.iterdir()] == ["till"]
    assert (done.signed_by, done.version, done.records) == (signer(home), "1", sum(map(len, held(fraud.SERVICE, reading).values())))
    return done.folder


def signer(home: Settings) -> str:
    return (home.models / "fraud/1/manifest.sig").read_text().split()[1]


def guarded(folder: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", str(ROOT / "tests/edge_guard.py"), str(folder / "scorer.py"), *words], input=stdin,
                          capture_output=True, text=True)


def told(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_vectors_and_scores_are_the_scorers_own_to_the_last_bit(folder: Path, reading: Reading, model: Model) -> None:
    r, device = random.Random(9), scorer.Device(folder)
    sets = device.read_sets()
    for _ in range(300):
        event = Transaction(f"{r.randrange(500)}", NOW - r.randrange(9 * DAY_MS), r.choice([CARD, "1"]), r.choice([TERMINAL, "2"]),
                            r.randrange(1, 90_000))
        expected = VectorBuilder(fraud.SERVICE).build([event], reading).matrix
        matrix, degraded = device.vector(plain(event), sets)
        assert degraded == []
        assert canonical(matrix).tobytes() == canonical(expected).tobytes()
        assert device.score(plain(event), sets)["score"] == float(model.score(expected)[0])


def test_it_runs_where_nothing_else_is_installed(folder: Path, reading: Reading, model: Model, tmp_path: Path) -> None:
    event = Transaction("7", NOW, CARD, TERMINAL, 5716)
    file = tmp_path / "event.json"
    file.write_text(json.dumps(plain(event)))
    checked, = told(guarded(folder, "check"))
    assert (checked["model"], checked["version"], checked["signed_by"]) == ("fraud", "1", None), "cryptography is not there either"
    one, = told(guarded(folder, str(file)))
    row = VectorBuilder(fraud.SERVICE).build([event], reading).matrix
    assert one["score"] == float(model.score(row)[0])
    assert list(one["features"]) == list(fraud.SERVICE.feature_names)
    assert [x if x is not None else np.nan for x in one["features"].values()] == pytest.approx(row[0].tolist(), abs=0, rel=0, nan_ok=True)


def test_contributions_are_those_of_explain_and_add_up(home: Settings, model: Model, reading: Reading, tmp_path: Path) -> None:
    done = export(home, fraud.FRAUD, home.models / "fraud" / "1", tmp_path / "till", NOW, held(fraud.SERVICE, reading), explain=True)
    event = Transaction("7", NOW, CARD, TERMINAL, 5716)
    one, = told(guarded(done.folder, "-", stdin=json.dumps(plain(event))))
    row = VectorBuilder(fraud.SERVICE).build([event], reading).matrix
    base, parts = contributions(read_trees((home.models / "fraud/1/model.onnx").read_bytes()), row[0])
    assert (one["base"], list(one["contributions"].values())) == (base, parts.tolist())
    log_odds = math.log(one["score"] / (1 - one["score"]))
    assert sum(one["contributions"].values()) + base == pytest.approx(log_odds, abs=1e-4)
    assert max(map(abs, parts)) > 0.01, "the control: something contributes"


def test_the_guard_of_these_tests_forbids_what_is_installed(tmp_path: Path) -> None:
    for name in ("msgspec", "numba", "cryptography", "xxhash", "feature_repo"):
        (tmp_path / "scorer.py").write_text(f"import {name}\n")
        done = guarded(tmp_path)
        assert done.returncode == 1
        assert f"No module named '{name}' on this device" in done.stderr
    (tmp_path / "scorer.py").write_text("import numpy, onnxruntime\n")
    assert guarded(tmp_path).returncode == 0


def test_events_that_are_kept_make_the_features_of_later_ones(folder: Path, reading: Reading) -> None:
    new = Transaction("new", NOW + 1000, CARD, TERMINAL, 999)
    label = Outcome("new", NOW + 1000, CARD, TERMINAL, True, 1)
    later = Transaction("later", NOW + 8 * DAY_MS, CARD, TERMINAL, 1)
    for event, words in ((new, ()), (new, ()), (label, ("--source", "outcomes"))):
        kept, = told(guarded(folder, "append", *words, "-", "--arrival", str(NOW + 2000), stdin=json.dumps(plain(event))))
        views = 1 if words else 2
        assert kept["kept"] + kept["known"] == views
    grown = [dict(of_view) for of_view in reading.sets]
    for view, of_view in zip(fraud.SERVICE.views, grown, strict=True):
        entity = CARD if view.entity == "card_id" else TERMINAL
        of_view[entity] = (of_view[entity] or b"") + packer(view)(new if view.source == TRANSACTIONS else label)
    expected = VectorBuilder(fraud.SERVICE).build([later], Reading(reading.applied, tuple(grown))).matrix
    before = VectorBuilder(fraud.SERVICE).build([later], reading).matrix
    device = scorer.Device(folder)
    matrix, degraded = device.vector(plain(later), device.read_sets())
    assert degraded == []
    assert canonical(matrix).tobytes() == canonical(expected).tobytes()
    assert canonical(before).tobytes() != canonical(expected).tobytes(), "the control: without them it is another vector"


def test_what_no_later_score_can_need_is_dropped_and_reads_below_that_have_no_values(folder: Path, reading: Reading) -> None:
    device = scorer.Device(folder)
    arrival_ms = NOW + 20 * DAY_MS
    event = plain(Transaction("20", arrival_ms, CARD, TERMINAL, 1))
    before, size = device.read_sets(), (folder / "events.bin").stat().st_size
    device.append([event], TRANSACTIONS, arrival_ms)
    after = device.read_sets()
    assert (folder / "events.bin").stat().st_size < size
    view = fraud.CARD_SPEND
    kept = after[view.versioned_name, CARD]
    floor = arrival_ms - fraud.SERVICE.scored_lateness_ms - view.max_skew_ms - view.longest_window_ms
    assert kept[0].tolist() == [floor, 0, 0, 0]
    assert (kept[1:, 0] > floor).all()
    last_read = {**event, "event_id": "late", "event_time": arrival_ms - fraud.SERVICE.scored_lateness_ms}
    device_now = device.vector(last_read, after)
    assert device_now[1] == []
    untrimmed = device.vector(last_read, {key: np.concatenate((records, after[key][-1:])) if key[0] != fraud.TERMINAL_RISK.versioned_name
                                          else records for key, records in before.items()})
    assert canonical(device_now[0]).tobytes() == canonical(untrimmed[0]).tobytes()
    too_old = {**event, "event_time": floor + view.longest_window_ms - 1}
    assert view.versioned_name in device.vector(too_old, after)[1]


def test_late_and_foreign_events_are_told_and_not_kept(folder: Path) -> None:
    device = scorer.Device(folder)
    before = (folder / "events.bin").read_bytes()
    late = plain(Transaction("late", NOW - 2 * DAY_MS, CARD, "4", 1))
    assert device.append([late], TRANSACTIONS, NOW) == {"kept": 0, "late": 1, "not_held": 1, "known": 0}
    with pytest.raises(scorer.EdgeError, match="lies in the future"):
        device.append([{**late, "event_time": NOW + DAY_MS}], TRANSACTIONS, NOW)
    assert [key for key in device.read_sets() if key[1] == "4"] == []
    assert scorer.read_events(folder / "events.bin", device.edge["views"])[0] == NOW
    assert len((folder / "events.bin").read_bytes()) <= len(before)


def test_an_entity_that_the_device_does_not_hold_is_told_as_degraded_with_the_models_defaults(folder: Path, model: Model) -> None:
    device = scorer.Device(folder)
    event = plain(Transaction("7", NOW, "a stranger", TERMINAL, 10_000))
    answer = device.score(event, device.read_sets())
    assert answer["degraded"] == [fraud.CARD_SPEND.versioned_name]
    names = list(fraud.SERVICE.feature_names)
    assert (answer["features"]["card_count_1d"], answer["features"]["card_count_1m"]) == (3.0, None)
    assert answer["features"]["amount_to_mean_30d"] == 2.0, "features of the request follow the defaults, as they do online"
    assert model.defaults[names.index("card_count_1d")] == 3.0
    assert answer["features"]["terminal_count_24h"] is not None


@pytest.mark.parametrize(("text", "fact"), [
    ("{", "holds no events"), ("[" * 100_000, "holds no events"), ("[]", "is no JSON object"),
    ('{"event_id": "1"}', "field 'event_time' is missing"),
    (json.dumps({**plain(Transaction("1", 1, "c", "t", 1)), "more": 1}), "field 'more' is unknown"),
    *((json.dumps({**plain(Transaction("1", 1, "c", "t", 1)), **wrong}), "is no ") for wrong in (
        {"amount_minor": 1.0}, {"amount_minor": True}, {"amount_minor": "1"}, {"amount_minor": -1}, {"card_id": ""}, {"card_id": "x" * 129},
        {"event_time": 1 << 70}, {"event_time": float("nan")}, {"card_id": "\ud800"})),
])
def test_what_breaks_the_contract_is_refused_as_the_contract_refuses_it(folder: Path, tmp_path: Path, text: str, fact: str,
                                                                        monkeypatch: pytest.MonkeyPatch,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    from schemas.errors import ContractError

    with pytest.raises(ContractError):
        TRANSACTION.decode(text.encode())
    file = tmp_path / "event.json"
    file.write_text(text)
    monkeypatch.setattr(scorer, "__file__", str(folder / "scorer.py"))
    assert scorer.main([str(file)]) == 1
    printed = capsys.readouterr()
    assert fact in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("name", [*scorer.HASHED, "edge.json", "bundle/model.onnx", "bundle/golden.json", "bundle/model_card.md",
                                  "bundle/manifest.sig"])
def test_a_changed_file_is_refused(folder: Path, name: str) -> None:
    assert scorer.Device(folder).signed_by, "the control: unchanged it is verified, with its signature"
    data = bytearray((folder / name).read_bytes())
    for at in (len(data) // 3, len(data) // 2):
        data[at] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(scorer.EdgeError, match=r"is damaged|is not what the|is signed by|does not have|is no JSON|cannot be read"):
        scorer.Device(folder)


def test_where_cryptography_is_there_the_signature_counts(folder: Path) -> None:
    """Hashes alone can be made to fit; what is weaker without it is just this."""
    manifest = folder / "bundle/manifest.json"
    raw = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps({**raw, "threshold": 0.0}))
    hashes = json.loads((folder / "edge.json").read_bytes())
    hashes["bundle/manifest.json"] = exporting.sha256(manifest.read_bytes())
    (folder / "edge.json").write_text(json.dumps(hashes))
    with pytest.raises(scorer.EdgeError, match="is not what the trusted key signed"):
        scorer.Device(folder)
    assert told(guarded(folder, "check"))[0]["signed_by"] is None


def test_a_link_an_extra_file_and_damaged_events_are_refused(folder: Path, tmp_path: Path) -> None:
    events = (folder / "events.bin").read_bytes()
    for wrong in (events[:-1], events + b"x", b"", b"headrace-events-v1\n[]\n", b"\x80\x04pickle"):
        (folder / "events.bin").write_bytes(wrong)
        with pytest.raises(scorer.EdgeError, match=r"events\.bin is"):
            scorer.Device(folder).read_sets()
    (folder / "bundle/extra").write_bytes(b"")
    with pytest.raises(scorer.EdgeError, match="does not list"):
        scorer.Device(folder)
    (folder / "bundle/extra").unlink()
    shutil.move(folder / "bundle/model.onnx", tmp_path / "model.onnx")
    (folder / "bundle/model.onnx").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(scorer.EdgeError, match="cannot be read"):
        scorer.Device(folder)


def test_a_model_of_entities_travels_too_with_columns_that_records_derive(home: Settings) -> None:
    """Churn: what is scored is a request, its views are of other sources, and an amount is quantity times price."""
    r, service = random.Random(3), churn.SERVICE
    lines = [InvoiceLine(f"{i}", NOW - r.randrange(200 * DAY_MS), "12347", f"i{r.randrange(9)}", f"p{r.randrange(9)}", r.randrange(1, 9),
                         r.randrange(9_000)) for i in range(80)]
    reading = sets_of(service, {"purchases": lines, "cancellations": lines[:7]})
    code = scorer.module("churn_features", exporting.request_module(service).encode())
    device = scorer.Device.__new__(scorer.Device)
    device.edge, device.names, device.code = described(service), list(service.feature_names), code
    device.defaults = np.full(len(device.names), np.nan)
    view = service.views[0]
    for line in lines:
        assert np.array(device.record(device.edge["views"][0], plain(line)), "<i8").tobytes() == packer(view)(line)
    for at_ms in range(NOW - 100 * DAY_MS, NOW, 7 * DAY_MS):
        request = ScoreRequest("r", at_ms, "12347")
        expected = VectorBuilder(service).build([request], reading).matrix
        assert canonical(device.vector(plain(request), held(service, reading))[0]).tobytes() == canonical(expected).tobytes()


def test_features_that_cannot_travel_are_refused(home: Settings, tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="is no plain function"):
        module_of({"a": lambda x: x}, {})
    with pytest.raises(DefinitionError, match="uses 'json', which cannot travel"):
        module_of({"a": _needs_json}, {})
    with pytest.raises(DefinitionError, match="has hops"):
        exporting._view(view_of(0, True, (0, 10, 50)))
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError, match="is there already"):
        export(home, fraud.FRAUD, home.models / "fraud" / "1", tmp_path / "there", 0, {})
    with pytest.raises(BundleError, match="cannot be read"):
        export(home, fraud.FRAUD, home.models / "fraud" / "2", tmp_path / "out", 0, {})
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def _needs_json(x: dict[str, Any]) -> Any:
    return json.loads(x["a"])


def test_the_command_exports_what_redis_holds_of_the_devices_own_entities(
        home: Settings, model: Model, kafka: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    paid, known = history(random.Random(11), 200)
    card, terminal = f"card-{os.getpid()}", f"terminal-{os.getpid()}"
    for source, events in ((TRANSACTIONS, paid), (OUTCOMES, known)):
        views = [view for view in fraud.SERVICE.views if view.source == source]
        writer = SetWriter(redis_url, views, [fraud.SERVICE], 1, timeout_ms=30_000)
        writer.marks.adopt(0, writer.held(0))
        of_ours = [(type(event)(**{**plain(event), "card_id": card, "terminal_id": terminal}), NOW) for event in events]
        writer.apply(0, max(*writer.held(0), 0) + 1, [of_ours] * len(views))
        writer.close()
    for name, value in (("HOME", str(home.home)), ("KAFKA", kafka), ("REDIS", redis_url)):
        monkeypatch.setenv(f"HEADRACE_{name}", value)
    out = tmp_path / "till"
    assert main(["export", "--edge", str(out), "--version", "1", "--entity", f"card={card}", f"terminal={terminal}", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["records"] == 2 * len(paid) + len(known)
    assert facts["bytes"] > 0
    assert facts["start_ms"] > 0
    event = Transaction("now", NOW, card, terminal, 4200)
    reader = SetReader(redis_url, 5000, 1)
    expected = VectorBuilder(fraud.SERVICE).build([event], reader.read(VectorBuilder(fraud.SERVICE).wanted([event]))).matrix
    reader.close()
    one, = told(guarded(out, "-", stdin=json.dumps(plain(event))))
    assert one["score"] == float(model.score(expected)[0])
    assert one["degraded"] == []
