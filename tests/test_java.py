"""Java and the jars: found, or fetched, or a clear word about why not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs.spark import spark_archive
from schemas.errors import RuntimeFault
from schemas.jars import archive_classes, class_archive, fetch_jars, jar_folder, jars
from schemas.java import OLDEST, java_home, module_versions
from schemas.settings import Settings
from services.runtime.class_archive import archive_kafka_classes


def version(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([home / "bin" / "java", *flags, "-version"], capture_output=True, text=True, check=False)


def test_a_machine_without_java_gets_the_wheels_which_takes_sparks_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    settings = Settings(cache=tmp_path)
    home = java_home(settings)
    monkeypatch.setenv("PATH", os.defpath)
    assert home == java_home(settings) or home.is_relative_to(tmp_path)
    assert version(home, "--add-modules=jdk.incubator.vector").returncode == 0
    told = version(home, "-Dname=two words", "--add-modules=jdk.incubator.vector", "-XshowSettings:properties")
    assert "name = two words" in told.stderr


def test_a_java_home_that_does_not_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "no-java-here"))
    assert module_versions(tmp_path / "no-java-here") == {}
    assert module_versions(java_home(Settings(cache=tmp_path)))["java.base"] >= OLDEST


def test_jars_that_cannot_be_fetched_say_what_ivy_said_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = " ".join(f"-D{scheme}.proxyHost=127.0.0.1 -D{scheme}.proxyPort=9" for scheme in ("http", "https"))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", nowhere)  # the network is down
    settings = Settings(cache=tmp_path)
    with pytest.raises(RuntimeFault, match=r"the jars of kafka could not be fetched \(Ivy ended with 1\): .*kafka_2\.13"):
        fetch_jars(settings, "kafka")
    assert not jar_folder(settings, "kafka").exists()


def test_one_version_of_each_jar_is_on_kafkas_class_path() -> None:
    names = [jar.name.rsplit("-", 1)[0] for jar in jars(Settings(), "kafka")]
    assert len(names) == len(set(names)) > 40


def test_the_archive_of_kafkas_classes_fits_its_class_path_and_no_other() -> None:
    archive_kafka_classes(Settings())
    if not (archive := class_archive(Settings(), "kafka")).exists():
        pytest.skip("this Java writes no archives")
    mapped = ("-Xshare:on", f"-XX:SharedArchiveFile={archive}", "-cp")  # refuses to start without it
    home, jars_of = java_home(Settings()), f"{jar_folder(Settings(), 'kafka')}/*"
    assert version(home, *mapped, jars_of).returncode == 0
    assert version(home, *mapped, "/nowhere").returncode != 0


def test_an_archive_of_older_jars_is_made_again_and_one_of_these_is_not(tmp_path: Path) -> None:
    """As after an upgrade. Mapped while the next one is made, the old one would keep that JVM from starting."""
    archive, jars_of, java, made = tmp_path / "classes.jsa", tmp_path / "jars", java_home(Settings()), []
    jars_of.mkdir()

    def run(option: str) -> None:
        mapped = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []
        assert version(java, *mapped, option).returncode == 0
        made.append(option)

    archive_classes(archive, jars_of, java, run)
    if not archive.exists():
        pytest.skip("this Java writes no archives")
    archive_classes(archive, jars_of, java, run)
    assert len(made) == 1
    archive.chmod(0o644)
    archive.write_bytes(b"of another Java")
    os.utime(archive, (0, 0))
    archive_classes(archive, jars_of, java, run)
    assert len(made) == 2
    assert archive.stat().st_size > 1000


def test_a_java_that_writes_no_archive_is_asked_for_none(tmp_path: Path) -> None:
    def run(option: str) -> None:
        raise AssertionError(option)

    (tmp_path / "jars").mkdir()
    (tmp_path / "bin").mkdir()
    java = tmp_path / "bin" / "java"
    java.write_text("#!/bin/sh\nexit 0\n")
    java.chmod(0o755)
    archive_classes(tmp_path / "classes.jsa", tmp_path / "jars", tmp_path, run)
    assert not (tmp_path / "classes.jsa").exists()


def test_sparks_classes_are_mapped_from_their_archive(spark: Any) -> None:
    if not (archive := spark_archive(Settings())).exists():
        pytest.skip("headrace fetch was not run, or this Java writes no archives")
    assert str(archive) in Path(f"/proc/{spark.sparkContext._gateway.proc.pid}/maps").read_text()
