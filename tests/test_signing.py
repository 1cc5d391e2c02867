"""P23: a hostile model file runs nothing. Each bundle of the corpus is refused before anything in it is opened; the untouched one loads.

Over 300 lines: the corpus is one table of ways to attack a bundle, beside what must refuse them.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from feature_repo import bundle as loader
from feature_repo.bundle import champion, load_bundle, promote
from feature_repo.fraud import SERVICE
from feature_repo.key_ring import check_signature, ensure_key, known_keys, revoke, rotate, sign_manifest, trust, unsafe_files
from feature_repo.manifest import sha256
from feature_repo.signing import key_id, new_key, public_of, sign
from schemas.errors import BundleError
from services.cli import main
from services.runtime.doctor import examine
from tests.small_model import write_small_model

FILES = ("manifest.json", "manifest.sig", "model.onnx", "golden.json", "model_card.md")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of one model, never changed by a test."""
    home = tmp_path_factory.mktemp("signed")
    for version in ("1", "2"):
        write_small_model(home / "models", version, SERVICE, threshold=int(version) / 4)
    return home


@pytest.fixture
def bundle(home: Path, tmp_path: Path) -> Path:
    """Version 1 in a home of its own, for a test to change."""
    shutil.copytree(home, tmp_path / "home")
    return tmp_path / "home/models/fraud/1"


def keys_of(bundle: Path) -> Path:
    return bundle.parents[2] / "keys"


def opened(*_: object) -> None:
    raise AssertionError("what was not verified was opened")


@pytest.fixture
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on it is a failure to look into a model, even to check it."""
    for name in ("Scorer", "check_tree_file"):
        monkeypatch.setattr(loader, name, opened)


@pytest.fixture
def nothing_parses(nothing_opens: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor to parse a manifest."""
    monkeypatch.setattr(loader, "decode", opened)


def refused(bundle: Path, fact: str) -> None:
    with pytest.raises(BundleError, match=fact) as caught:
        load_bundle(bundle, SERVICE, keys_of(bundle))
    assert caught.value.hint


def test_the_untouched_bundle_loads(bundle: Path) -> None:
    assert load_bundle(bundle, SERVICE, keys_of(bundle)).threshold == 0.25
    assert sorted(os.listdir(bundle)) == sorted(FILES)


@pytest.mark.usefixtures("nothing_parses")
def test_the_trap_of_these_tests_would_see_an_opened_bundle(bundle: Path) -> None:
    with pytest.raises(AssertionError, match="was opened"):
        load_bundle(bundle, SERVICE, keys_of(bundle))


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_of_manifest_or_signature_can_change(bundle: Path, nothing_parses: None, name: str, data: st.DataObject) -> None:
    path = bundle / name
    before = path.read_bytes()
    at, change = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(before)
    changed[at] ^= change
    path.write_bytes(changed)
    try:
        refused(bundle, "signature is not|is signed by key|did not sign")
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["model.onnx", "golden.json", "model_card.md"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@example(at=0.0, change=0x80)
def test_no_byte_of_another_file_can_change(bundle: Path, nothing_opens: None, name: str, at: float, change: int) -> None:
    path = bundle / name
    before = path.read_bytes()
    changed = bytearray(before)
    changed[int(at * len(before))] ^= change
    path.write_bytes(changed)
    try:
        refused(bundle, f"{name} of bundle '1' is damaged")
    finally:
        path.write_bytes(before)


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_truncated_file_is_refused(bundle: Path, name: str, share: float) -> None:
    path = bundle / name
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
    refused(bundle, "signature is not|did not sign|is damaged")


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_version_is_refused(bundle: Path, name: str) -> None:
    other = bundle.parent / "2" / name
    if other.read_bytes() == (bundle / name).read_bytes():
        other = bundle / "model_card.md" if name != "model_card.md" else bundle / "golden.json"
    shutil.copy(other, bundle / name)
    refused(bundle, "did not sign|is damaged|signature is not")


@pytest.mark.usefixtures("nothing_parses")
def test_a_manifest_whose_hashes_fit_and_whose_signature_is_the_old_one_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"other trees")
    raw = json.loads((bundle / "manifest.json").read_bytes())
    raw["files"]["model.onnx"] = sha256(b"other trees")
    (bundle / "manifest.json").write_text(json.dumps(raw))
    refused(bundle, "bundle '1' of model 'fraud' has a manifest that key [0-9a-f]{16} did not sign")


@pytest.mark.usefixtures("nothing_parses")
def test_a_bundle_that_is_not_signed_is_refused(bundle: Path) -> None:
    (bundle / "manifest.sig").unlink()
    refused(bundle, "is not signed")


@pytest.mark.usefixtures("nothing_parses")
def test_the_signature_of_a_stranger_is_refused(bundle: Path) -> None:
    stranger = new_key()
    (bundle / "manifest.sig").write_bytes(sign(stranger, (bundle / "manifest.json").read_bytes()))
    refused(bundle, f"signed by key {key_id(public_of(stranger))}, which is not trusted here")
    trust(keys_of(bundle), _file(bundle.parents[2] / "stranger.pub", public_of(stranger)))
    with pytest.raises(AssertionError, match="was opened"):  # the control: trusted, it would be
        load_bundle(bundle, SERVICE, keys_of(bundle))


@pytest.mark.usefixtures("nothing_parses")
def test_a_stranger_with_the_name_of_a_trusted_key_is_refused(bundle: Path) -> None:
    stranger, manifest = new_key(), (bundle / "manifest.json").read_bytes()
    trusted = known_keys(keys_of(bundle))[0].id
    own = key_id(public_of(stranger))
    (bundle / "manifest.sig").write_bytes(sign(stranger, manifest).replace(own.encode(), trusted.encode()))
    refused(bundle, "did not sign")
    (keys_of(bundle) / f"{trusted}.pub").write_bytes(public_of(stranger))
    refused(bundle, f"holds another key, {own}")


@pytest.mark.usefixtures("nothing_parses")
def test_a_signature_of_the_same_bytes_for_another_purpose_is_refused(bundle: Path) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = load_pem_private_key((keys_of(bundle) / "signing.key").read_bytes(), None)
    raw = private.sign((bundle / "manifest.json").read_bytes())  # type: ignore[union-attr, call-arg]
    (bundle / "manifest.sig").write_text(f"headrace-ed25519 {known_keys(keys_of(bundle))[0].id} {raw.hex()}\n")
    refused(bundle, "did not sign")


@pytest.mark.usefixtures("nothing_parses")
def test_what_a_revoked_key_signed_is_refused_and_says_what_to_do(bundle: Path) -> None:
    keys = keys_of(bundle)
    new, old = rotate(keys)
    assert old is not None
    revoke(keys, old)
    refused(bundle, f"bundle '1' of model 'fraud' is signed by key {old}, which was revoked")
    with pytest.raises(BundleError, match="was revoked"):  # nor does it come back by the front door
        trust(keys, keys / "revoked" / f"{old}.pub")
    with pytest.raises(BundleError, match="signs new bundles"):
        revoke(keys, new)


def test_what_was_signed_before_a_rotation_loads_after_it(bundle: Path) -> None:
    keys = keys_of(bundle)
    before = (keys / "signing.key").read_bytes()
    new, old = rotate(keys)
    assert (keys / "signing.key").read_bytes() != before
    assert [(key.id, key.state) for key in known_keys(keys)] == [(new, "signing"), (old, "trusted")]
    assert load_bundle(bundle, SERVICE, keys).version == "1"
    third = write_small_model(bundle.parents[1], "3", SERVICE)
    assert new in (third / "manifest.sig").read_text()
    assert load_bundle(third, SERVICE, keys).version == "3"


@pytest.mark.parametrize(("model", "version"), [("fraud", "3"), ("churn", "1")])
def test_a_signed_bundle_is_not_taken_for_another_version_or_model(bundle: Path, model: str, version: str) -> None:
    moved = bundle.parents[1] / model / version
    shutil.copytree(bundle, moved)
    refused(moved, f"bundle '{version}' of model '{model}' holds version '1' of model 'fraud'")


def test_a_pointer_that_names_one_version_and_points_at_another_is_refused(bundle: Path) -> None:
    models = bundle.parents[1]
    promote(models, bundle)
    assert champion(models, "fraud") == bundle
    path = models / "fraud/champion.json"
    path.write_text(path.read_text().replace('"fraud/1"', '"fraud/2"'))
    with pytest.raises(BundleError, match="names version '1' and points at 'fraud/2'"):
        champion(models, "fraud")


class Hostile:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize("name", [*FILES, "model.pkl", "__init__.py"])
def test_a_pickle_runs_nowhere(bundle: Path, tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"
    (bundle / name).write_bytes(pickle.dumps(Hostile(ran)))
    refused(bundle, "signature is not|did not sign|is damaged|does not list")
    assert not ran.exists()
    pickle.loads((bundle / name).read_bytes()).close()  # the control: it would have run
    assert ran.exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("nothing_opens")
def test_a_bomb_is_not_read(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as file:
        file.truncate(1 << 40)  # sparse
    refused(bundle, "has 1,099,511,627,776 bytes")


@pytest.mark.parametrize("name", ["a fifo", "a link", "a folder"])
def test_what_is_no_plain_file_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    path = bundle / "manifest.sig"
    shutil.move(path, tmp_path / "elsewhere")
    {"a fifo": lambda: os.mkfifo(path), "a link": lambda: path.symlink_to(tmp_path / "elsewhere"), "a folder": path.mkdir}[name]()
    refused(bundle, "manifest.sig")


def test_the_folder_of_keys_is_its_owners_alone(bundle: Path) -> None:
    keys = keys_of(bundle)
    private, public = keys / "signing.key", keys / f"{known_keys(keys)[0].id}.pub"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (keys, private, public)] == [0o700, 0o600, 0o644]
    assert list(unsafe_files(keys)) == []
    private.chmod(0o640)
    with pytest.raises(BundleError, match="can be read by other users"):
        sign_manifest(keys, b"{}")
    public.chmod(0o664)
    refused(bundle, "can be written by other users")
    assert {path.name: fault for path, fault in unsafe_files(keys)} == {
        "signing.key": "can be read by other users", public.name: "can be written by other users"}
    public.chmod(0o644)
    keys.chmod(0o777)
    refused(bundle, "keys can be written by other users")


def test_a_machine_that_only_loads_never_makes_a_key(bundle: Path, tmp_path: Path) -> None:
    public = next(keys_of(bundle).glob("*.pub"))
    elsewhere = tmp_path / "loads-only"
    trust(elsewhere, public)
    assert ensure_key(elsewhere) is None
    with pytest.raises(BundleError, match=r"has no signing\.key"):
        sign_manifest(elsewhere, b"{}")
    assert load_bundle(bundle, SERVICE, elsewhere).version == "1"
    assert [key.state for key in known_keys(elsewhere)] == ["trusted"]


def test_the_first_key_is_made_once(tmp_path: Path) -> None:
    made = ensure_key(tmp_path / "keys")
    assert made is not None
    assert ensure_key(tmp_path / "keys") is None
    check_signature(tmp_path / "keys", b"{}", sign_manifest(tmp_path / "keys", b"{}"), "it")
    with pytest.raises(BundleError, match="did not sign"):
        check_signature(tmp_path / "keys", b"{ }", sign_manifest(tmp_path / "keys", b"{}"), "it")


def test_the_command_lists_rotates_and_revokes(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    home, keys = bundle.parents[2], keys_of(bundle)
    promote(home / "models", bundle)
    monkeypatch.setenv("HEADRACE_HOME", str(home))

    def told(*words: str) -> dict[str, object]:
        assert main(["keys", *words, "--json"]) == 0
        facts: dict[str, object] = json.loads(capsys.readouterr().out)
        return facts

    first = known_keys(keys)[0].id
    assert told("list")["keys"] == [{"id": first, "state": "signing", "bundles": ["fraud/1 (champion)", "fraud/2"]}]
    assert told("rotate", "--dry-run")["new"] is None
    assert known_keys(keys)[0].id == first
    second = told("rotate")["new"]
    assert told("revoke", first, "--dry-run")["refused"] == ["fraud/1 (champion)", "fraud/2"]
    assert load_bundle(bundle, SERVICE, keys).version == "1"
    assert told("revoke", first)["revoked"] == first
    refused(bundle, "was revoked")
    assert [key["state"] for key in told("list")["keys"]] == ["signing", "revoked"]  # type: ignore[attr-defined]
    assert main(["keys", "revoke", str(second)]) == BundleError.exit_code
    assert "signs new bundles" in capsys.readouterr().err


def test_doctor_refuses_keys_that_others_may_use(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(bundle.parents[2]))
    monkeypatch.setenv("HEADRACE_KAFKA", "127.0.0.1:1")
    monkeypatch.setenv("HEADRACE_REDIS", "redis://127.0.0.1:1/0")
    assert [finding.verdict for finding in examine() if finding.name == "keys"] == ["ok"]
    (keys_of(bundle) / "signing.key").chmod(0o644)
    found = [(finding.verdict, finding.mend) for finding in examine() if finding.name == "keys"]
    assert found[0][0] == "missing"
    assert found[0][1].startswith("chmod 600 ")


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
