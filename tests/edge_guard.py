"""Run as ``python -I edge_guard.py SCORER WORD...``: a scorer where nothing but Python, numpy and onnxruntime is installed."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from types import ModuleType

ALLOWED = {*sys.stdlib_module_names, "numpy", "onnxruntime"}


class NothingElse:
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name.split(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r} on this device", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, NothingElse())  # type: ignore[arg-type]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
