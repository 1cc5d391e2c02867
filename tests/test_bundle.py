from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest

from feature_repo.bundle import Golden, Manifest, Scorer, champion, load_bundle, promote, write_bundle
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.key_ring import sign_manifest
from feature_repo.manifest import sha256
from feature_repo.tree_file import check_tree_file
from jobs.fit import fit_local, to_onnx
from schemas.errors import BundleError

WIDTH = len(SERVICE.feature_names)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(400, WIDTH))
    x[rng.random(x.shape) < 0.2] = np.nan
    return x


@pytest.fixture(scope="module")
def onnx(rows):
    label = (np.nan_to_num(rows[:, 0]) + np.nan_to_num(rows[:, 3]) > 0.5).astype(int)
    return to_onnx(fit_local(FRAUD, rows.astype(np.float32), label), WIDTH, "fraud")


def manifest(**changes):
    known = {
        "model": "fraud", "version": "1", "service": SERVICE.name, "service_hash": SERVICE.definition_hash, "views": {},
        "inputs": list(SERVICE.feature_names), "threshold": 0.5, "defaults": {"card_count_1d": 1.0}, "label": "fraud",
        "label_delay_ms": 0, "train": ("2018-01-01", "2018-01-02"), "test": ("2018-01-09", "2018-01-10"), "seed": 0,
        "parameters": {}, "metrics": {}, "data": {}, "frameworks": {},
    }
    return Manifest(**{**known, **changes})


def golden_of(onnx, rows):
    inputs = [[None if np.isnan(value) else float(value) for value in row] for row in rows[:8]]
    return Golden(inputs, Scorer(onnx)(rows[:8]).tolist())


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def bundle(models, onnx, rows):
    return write(models, onnx, rows)


def write(models, onnx, rows, model="fraud", version="1", card="# a card\n"):
    folder = models / model / version
    write_bundle(folder, manifest(model=model, version=version), onnx, golden_of(onnx, rows), card, models.parent / "keys")
    return folder


def load(bundle):
    return load_bundle(bundle, SERVICE, bundle.parents[2] / "keys")


def reseal(bundle, **changes):
    """What only who holds the signing key can do: change it, make every hash fit again, and sign that. The other checks hold alone."""
    raw = json.loads((bundle / "manifest.json").read_bytes())
    raw["files"] = {name: sha256((bundle / name).read_bytes()) for name in raw["files"]}
    (bundle / "manifest.json").write_text(json.dumps({**raw, **changes}))
    sign(bundle)


def sign(bundle):
    (bundle / "manifest.sig").write_bytes(sign_manifest(bundle.parents[2] / "keys", (bundle / "manifest.json").read_bytes()))


def refused(bundle, fact):
    with pytest.raises(BundleError, match=fact) as caught:
        load(bundle)
    assert caught.value.hint


def test_a_bundle_that_was_written_is_the_model_that_is_loaded(bundle, onnx, rows):
    model = load(bundle)
    assert (model.name, model.version, model.threshold) == ("fraud", "1", 0.5)
    assert model.score(rows).dtype == np.float64
    assert model.score(rows).tolist() == Scorer(onnx)(rows).tolist()
    assert model.score(rows[:0]).shape == (0,)
    assert model.defaults.shape == (WIDTH,)
    assert model.defaults[SERVICE.feature_names.index("card_count_1d")] == 1.0
    assert np.isnan(model.defaults).sum() == WIDTH - 1


def test_a_version_is_written_once_and_leaves_no_draft(bundle, onnx, rows):
    with pytest.raises(BundleError, match="exists"):
        write(bundle.parents[1], onnx, rows, card="# another\n")
    assert [path.name for path in bundle.parent.iterdir()] == ["1"]
    assert (bundle / "model_card.md").read_text() == "# a card\n"


@pytest.mark.parametrize("name", ["model.onnx", "golden.json", "model_card.md"])
def test_a_flipped_byte_is_refused_wherever_it_is(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    refused(bundle, f"{name} of bundle '1' is damaged")


def test_a_missing_file_is_refused(bundle):
    (bundle / "golden.json").unlink()
    refused(bundle, r"golden\.json cannot be read: No such file")


def test_a_path_out_of_the_folder_is_refused(bundle, tmp_path):
    (tmp_path / "secret").write_text("x")
    raw = json.loads((bundle / "manifest.json").read_bytes())
    raw["files"]["../../../secret"] = sha256(b"x")
    (bundle / "manifest.json").write_text(json.dumps(raw))
    sign(bundle)
    refused(bundle, "the manifest lists ../../../secret")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig", "model.onnx", "golden.json"])
def test_a_symbolic_link_is_refused_even_to_the_right_bytes(bundle, tmp_path, name):
    target = tmp_path / "elsewhere"
    shutil.move(bundle / name, target)
    (bundle / name).symlink_to(target)
    refused(bundle, f"{name} cannot be read")


def test_a_link_to_a_whole_bundle_is_refused(bundle, models):
    link = models / "fraud" / "2"
    link.symlink_to(bundle)
    refused(link, "is a symbolic link")


def test_a_folder_named_like_a_file_is_refused(bundle):
    (bundle / "model_card.md").unlink()
    (bundle / "model_card.md").mkdir()
    refused(bundle, "model_card.md")


def test_a_file_that_the_manifest_does_not_list_is_refused(bundle):
    (bundle / "weights.bin").write_bytes(b"")
    refused(bundle, "does not list: 'weights.bin'")


def test_a_file_larger_than_its_limit_is_not_read(bundle):
    with (bundle / "golden.json").open("ab") as file:
        file.truncate(1 << 40)  # sparse: nothing is written
    refused(bundle, "has 1,099,511,627,776 bytes")


def test_other_features_than_those_served_are_refused(bundle):
    reseal(bundle, service_hash="00000000")
    refused(bundle, "was trained on features fraud@00000000")


def test_the_same_features_in_another_order_are_refused(bundle):
    names = list(SERVICE.feature_names)
    reseal(bundle, inputs=[names[1], names[0], *names[2:]])
    refused(bundle, "in their order")


@pytest.mark.parametrize(("changes", "fact"), [
    ({"threshold": 7.0}, "the threshold is 7.0"),
    ({"threshold": "0.5"}, "is not a manifest"),
    ({"format": 2}, "the bundle has format 2"),
    ({"code": "import os"}, "is not a manifest"),
    ({"defaults": {"no_such": 1.0}}, "a default for 'no_such'"),
    ({"files": {}}, "the manifest lists no file"),
])
def test_a_manifest_that_says_something_else_is_refused(bundle, changes, fact):
    reseal(bundle, **changes)
    refused(bundle, fact)


def test_a_manifest_of_ten_thousand_brackets_is_refused(bundle):
    (bundle / "manifest.json").write_text("[" * 10_000)
    sign(bundle)
    refused(bundle, "is not a manifest")


def test_golden_outputs_that_the_model_does_not_give_are_refused(bundle):
    golden = json.loads((bundle / "golden.json").read_bytes())
    golden["outputs"][3] += 2e-6
    (bundle / "golden.json").write_text(json.dumps(golden))
    reseal(bundle)
    refused(bundle, "differ from its golden ones by 2e-06")


def test_a_pickle_named_onnx_is_refused_and_runs_nothing(bundle, tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    (bundle / "model.onnx").write_bytes(pickle.dumps(Hostile()))
    reseal(bundle)
    refused(bundle, "not a file of decision trees")
    assert not (tmp_path / "ran").exists()


def test_an_onnx_file_with_more_than_trees_is_refused(onnx):
    from onnx import ModelProto, TensorProto, helper

    def changed(change):
        model = ModelProto.FromString(onnx)
        change(model)
        return model.SerializeToString()

    def outside(model):
        tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="../../secret")

    attribute = helper.make_attribute("t", helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]))
    changes = {
        "external tensor": outside,
        "tensor in an attribute": lambda model: model.graph.node[0].attribute.append(attribute),
        "other operator": lambda model: model.graph.node.append(helper.make_node("Identity", ["input"], ["copy"])),
        "own operator domain": lambda model: setattr(model.graph.node[0], "domain", "com.example"),
        "function": lambda model: model.functions.add(name="f"),
        "no node": lambda model: model.graph.ClearField("node"),
    }
    check_tree_file(onnx)
    for change in changes.values():
        data = changed(change)
        with pytest.raises(BundleError, match="not a file of decision trees"):
            check_tree_file(data)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_bytes_the_check_of_a_tree_file_ends_with_a_verdict(onnx, seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        data = bytearray(onnx[: rng.integers(1, 3000)])
        data[rng.integers(len(data))] = rng.integers(256)
        with pytest.raises(BundleError):
            check_tree_file(bytes(data))


def test_trees_that_go_round_in_circles_are_refused(bundle, onnx):
    from onnx import ModelProto

    model = ModelProto.FromString(onnx)
    children = next(item for item in model.graph.node[0].attribute if item.name == "nodes_truenodeids")
    for index in range(len(children.ints)):
        children.ints[index] = 0
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    reseal(bundle)
    refused(bundle, "cannot be opened")


def test_there_is_no_champion_before_one_is_promoted(models, bundle):
    assert champion(models, "fraud") is None
    promote(models, bundle)
    assert champion(models, "fraud") == bundle
    assert champion(models, "churn") is None


def test_promotion_moves_the_pointer_in_one_step(models, bundle, onnx, rows):
    promote(models, bundle)
    second = write(models, onnx, rows, version="2")
    promote(models, second)
    assert champion(models, "fraud") == second
    assert json.loads((models / "fraud" / "champion.json").read_bytes())["version"] == "2"
    assert sorted(path.name for path in (models / "fraud").iterdir()) == ["1", "2", "champion.json"]


def test_a_manifest_changed_after_promotion_is_not_served(models, bundle):
    promote(models, bundle)
    reseal(bundle, threshold=0.0)
    with pytest.raises(BundleError, match="not the one that was promoted"):
        champion(models, "fraud")


def test_a_pointer_out_of_the_models_folder_is_refused(models, bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "evil")
    pointer = {"model": "fraud", "version": "1", "bundle": "../evil", "sha256": sha256((bundle / "manifest.json").read_bytes())}
    (models / "fraud" / "champion.json").write_text(json.dumps(pointer))
    with pytest.raises(BundleError, match="points out of the models folder"):
        champion(models, "fraud")


def test_each_model_has_a_live_one_of_its_own(models, bundle, onnx, rows):
    promote(models, bundle)
    other = write(models, onnx, rows, model="churn")
    promote(models, other)
    assert (champion(models, "fraud"), champion(models, "churn")) == (bundle, other)
