"""The dependency rule, the owners of foreign libraries, and what no committed file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "schemas": set(),
    "feature_repo": {"schemas"},
    "streams": {"schemas", "feature_repo"},
    "jobs": {"schemas", "feature_repo"},
    "services": {"schemas", "feature_repo", "streams", "jobs"},
}
OWNERS = {
    "faust": ["streams/"],
    "aiokafka": ["streams/"],
    "pyspark": ["jobs/"],
    "delta": ["jobs/"],
    "xgboost": ["jobs/"],
    "sklearn": ["jobs/"],
    "mlflow": ["jobs/registry.py"],
    "openlineage": ["jobs/lineage.py"],
    "onnxmltools": ["jobs/"],
    "onnx": ["feature_repo/trees.py", "jobs/fit.py"],
    "deltalake": ["feature_repo/archive_table.py", "feature_repo/delta_files.py"],
    "onnxruntime": ["feature_repo/bundle.py", "services/edge/scorer.py"],
    "cryptography": ["feature_repo/signing.py", "services/edge/scorer.py"],
    "redis": ["feature_repo/wire.py", "services/runtime/"],
    "hiredis": ["feature_repo/wire.py"],
    "feast": ["feature_repo/feast_store.py", "feature_repo/feast_offline.py", "feature_repo/definitions.py"],
    "numba": ["feature_repo/kernel.py", "feature_repo/scanner.py", "feature_repo/hashing.py", "feature_repo/identity.py",
              "streams/detectors/losses.py"],
    "confluent_kafka": ["streams/", "services/"],
    "river": ["streams/detectors/second_opinion.py", "streams/learners.py"],
    "scipy": ["streams/detectors/intervals.py"],
    "fastapi": ["services/api/"],
    "starlette": ["services/api/"],
    "uvicorn": ["services/api/"],
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in MAY_IMPORT:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imported(tree: ast.Module) -> set[str]:
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.split(".")[0] for name in names}


def test_packages_import_only_what_lies_below_them() -> None:
    broken = [(path, name) for path, tree in modules() for name in imported(tree) & MAY_IMPORT.keys()
              if name not in MAY_IMPORT[path.split("/")[0]] | {path.split("/")[0]}]
    assert broken == []


def test_each_foreign_library_has_one_owner() -> None:
    broken = [(path, name) for path, tree in modules() for name in imported(tree) & OWNERS.keys()
              if not any(path.startswith(owner) for owner in OWNERS[name])]
    assert broken == []


def test_modules_can_be_lived_in() -> None:
    long = {path: n for path, tree in modules() if (n := len((ROOT / path).read_text().splitlines())) > 300
            and "300 lines" not in (ast.get_docstring(tree) or "")}
    assert long == {}


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = "{'feast', 'pyspark', 'mlflow', 'numba', 'pandas', 'xgboost', 'sklearn', 'faust', 'onnxruntime', 'river', 'scipy', 'fastapi'}"
    program = f"import sys, services.cli; services.cli.parser(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program],
                          cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("what", "pattern"), [
    ("a package index's address", r"https?://[^ ]*(pypi|pythonhosted|maven|npmjs|crates|goproxy|debian)"),
    ("a path of one machine", r"(^|[^a-z.])/(work|farm|root)/[a-z.]"),
])
def test_no_tracked_file_holds(what: str, pattern: str) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    found = [path for path in tracked if path != "tests/test_structure.py" and (ROOT / path).exists()
             and re.search(pattern, (ROOT / path).read_text(errors="replace"), re.MULTILINE)]
    assert found == [], what
