"""The ``headrace`` command: examples everywhere, exit codes from the error tree, light at its start."""

from __future__ import annotations

import argparse
import json
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import RuntimeFault, SettingsError
from services.cli import main, parser
from services.runtime.doctor import examine
from services.runtime.embedded import Runtime

HEAVY = {"pyspark", "feast", "mlflow", "numba", "numpy", "pandas", "faust", "confluent_kafka", "redis", "pydantic", "onnxruntime"}


def leaves(command: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    deeper = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    return [leaf for action in deeper for child in action.choices.values() for leaf in leaves(child)] if deeper else [command]


def test_every_command_has_an_example_that_it_accepts() -> None:
    commands = leaves(parser())
    assert len(commands) >= 6
    for command in commands:
        assert command.epilog, command.prog
        assert command.prog in command.epilog
        example = shlex.split(command.epilog.removeprefix("example: "))
        assert parser().parse_args(example[example.index("headrace") + 1:]).run, command.prog


def test_the_start_of_the_command_imports_nothing_heavy() -> None:
    script = "import sys, services.cli; services.cli.parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY & set(loaded) == set()


def test_an_error_is_a_fact_a_hint_and_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    assert main(["topics"]) == RuntimeFault.exit_code
    assert capsys.readouterr().err == f"error: headrace does not run in {tmp_path}\n hint: headrace up\n"
    assert main(["topics", "--json"]) == RuntimeFault.exit_code
    assert json.loads(capsys.readouterr().err) == {"error": f"headrace does not run in {tmp_path}", "hint": "headrace up"}
    monkeypatch.setenv("HEADRACE_WORKER", "2")
    assert main(["topics"]) == SettingsError.exit_code
    assert "unknown setting HEADRACE_WORKER" in capsys.readouterr().err


def test_doctor_names_what_is_unsafe_and_what_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("HEADRACE_KAFKA", "127.0.0.1:1")
    monkeypatch.setenv("HEADRACE_REDIS", "redis://:secret@127.0.0.1:1/0")
    tmp_path.chmod(0o755)
    findings = {finding.name: finding for finding in examine()}
    assert (findings["home"].verdict, findings["home"].mend) == ("warning", f"chmod 700 {tmp_path}")
    assert (findings["kafka"].verdict, findings["redis"].verdict) == ("missing", "missing")
    assert "secret" not in str(findings)
    monkeypatch.setenv("HEADRACE_KAFKAS", "typo")
    assert [finding.name for finding in examine() if finding.verdict == "missing"] == ["settings"]


def test_doctor_sees_a_redis_that_may_lose_or_evict(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    import redis

    monkeypatch.setattr("services.runtime.doctor.ASK_S", 60.0)
    monkeypatch.setenv("HEADRACE_KAFKA", runtime.kafka)
    monkeypatch.setenv("HEADRACE_REDIS", runtime.redis)
    assert {finding.verdict for finding in examine() if finding.name in ("kafka", "topics", "redis")} == {"ok"}
    with redis.Redis.from_url(runtime.redis) as client:
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
    mends = [finding.mend for finding in examine() if finding.name == "redis"]
    assert mends == ["redis-cli config set appendonly yes", "redis-cli config set maxmemory-policy noeviction"]


def test_the_home_folder_is_for_its_owner_alone(runtime: Runtime, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert [stat.S_IMODE((tmp_path / "home" / name).stat().st_mode) for name in ("keys", "keys/signing.key")] == [0o700, 0o600]


def test_settings_are_listed_without_their_secrets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_REDIS", "redis://:hunter2@host:6379/0")
    assert main(["doctor", "--settings", "--json"]) == 0
    printed = capsys.readouterr().out
    assert "hunter2" not in printed
    assert {fact["name"] for fact in json.loads(printed)} >= {"HEADRACE_HOME", "HEADRACE_WORKERS"}
