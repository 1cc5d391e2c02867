"""What is no value of an option is refused where it is read, by its name, and nothing is done."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from services.api.keys import key_file, read_keys
from services.cli import main
from services.runtime.doctor import examine


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("words", [
    "status --interval 0", "status --interval nan", "status --interval inf", "status --interval -1", "status --interval soon",
    "replay rows.csv --rate nan", "replay rows.csv --rate inf", "replay rows.csv --rate 0", "replay rows.csv --limit 0",
    "api-keys add --out new.key --rate nan", "api-keys add --out new.key --rate inf", "api-keys add --out new.key --rate 0",
    "training-set 2018-07-25..2018-07-31 --archive-version -1", "archive --continuous -5", "dlq list --limit -3", "apply --grace -3",
    "apply --grace nan", "explain an-id --events -4", "why an-id --most 0", "simulate --days 0", "simulate --cards -1", "up --workers 0",
    "release canary fraud@3 --steps 1,0,5 --why new", "release canary fraud@3 --steps 50,150 --why new",
    "release canary fraud@3 --hold-at nan --why new", "release pause --why ' '", "retrain --why ''", "drift learn rows.csv --delay 0",
])
def test_a_number_that_is_none_or_too_small_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(words))
    assert caught.value.code == 2
    option = next(word for word in words.split() if word.startswith("--") and word != "--out")
    assert f"argument {option}: " in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    ("training-set 2018-07-25..2018-07-31 --train 2018-07-25..2018-07-31", "belong to --compare"),
    ("training-set tomorrow", "'tomorrow' is not a period"), ("training-set 2018-08-02..2018-08-01", "ends before it begins"),
    ("outcomes join --dry-run --publish", "--dry-run publishes nothing"), ("api-keys list other", "belongs to revoke"),
    ("api-keys add --out no/folder/new.key", "cannot be written"), ("score event.json --at 2018-08-14", "belongs to ENTITY=ID"),
])
def test_options_that_do_not_belong_together_are_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_a_key_whose_text_cannot_be_written_is_none(home: Path) -> None:
    assert main(["api-keys", "add", "--out", str(home / "no" / "new.key")]) == 2
    assert read_keys(key_file(home / "api")) == []


def test_a_file_of_keys_that_is_damaged_is_found_by_the_doctor(home: Path) -> None:
    assert main(["api-keys", "add", "--out", str(home.parent / "new.key")]) == 0
    verdicts = {found.name: found.verdict for found in examine()}
    assert verdicts["api keys"] == "ok"
    file = key_file(home / "api")
    file.write_text(file.read_text().replace("1000.0", "null"))
    damaged = next(found for found in examine() if found.name == "api keys")
    assert (damaged.verdict, "move it away" in damaged.mend) == ("missing", True)
    assert main(["api-keys", "add", "--out", str(home.parent / "other.key")]) == 2
    assert not (home.parent / "other.key").exists()
    api = subprocess.run([sys.executable, "-m", "services.api"], capture_output=True, text=True, timeout=60, check=False)
    assert api.returncode == 2
    assert "is no file of keys" in api.stderr


@pytest.mark.parametrize("group", ["dlq", "drift", "feast", "keys", "models", "outcomes", "release"])
def test_a_command_with_actions_has_an_example(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([group, "--help"])
    assert f"example: headrace {group} " in capsys.readouterr().out


def test_what_was_watched_ends_after_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "alarms.csv").write_text("at\n2026-02-01\n")
    assert main(["drift", "evaluate", str(tmp_path / "alarms.csv"), "--from", "2026-04-01", "--until", "2026-01-01"]) == 2
    assert "--until is before --from" in capsys.readouterr().err


def test_an_empty_file_of_labelled_rows_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.ndjson").touch()
    assert main(["drift", "learn", str(tmp_path / "rows.ndjson")]) == 2
    assert "it is empty" in capsys.readouterr().err
