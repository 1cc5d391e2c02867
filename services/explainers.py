"""Explains predictions by the bundle that made them, each bundle read and verified once. Not on any scorer's path."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import msgspec
import numpy as np

from feature_repo.bundle import read_bundle
from feature_repo.explainer import Explainer, fault_of, reasons_of
from feature_repo.manifest import MODEL_FILE, Manifest
from feature_repo.models import ModelSpec
from feature_repo.trees import read_trees
from schemas.errors import BundleError
from schemas.reasons import Reason
from schemas.settings import Settings

__all__ = ["Explainers", "Explanation"]

MOST_KEPT = 8


class Explanation(msgspec.Struct, frozen=True, gc=False):
    """``base`` plus all ``contributions`` is ``margin``, the log-odds of the score; ``reasons`` are those that raised it most. With a
    ``fault`` there is nothing else, and it tells why."""

    base: float | None
    margin: float | None
    contributions: dict[str, float]
    reasons: list[Reason]
    fault: str | None = None

    @classmethod
    def failed(cls, fault: str) -> Explanation:
        return cls(None, None, {}, [], fault)

    @property
    def rest(self) -> float | None:
        """What all features add that are no reason."""
        if self.margin is None or self.base is None:
            return None
        return self.margin - self.base - sum(reason.contribution for reason in self.reasons)


class Explainers:
    """Those of the versions that were asked for last. May be asked by several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: OrderedDict[tuple[str, str], tuple[Manifest, Explainer]] = OrderedDict()
        self._one_reads = threading.Lock()

    def of(self, model: str, version: str) -> tuple[Manifest, Explainer]:
        """Raises BundleError where the bundle is not there or not to be trusted."""
        with self._one_reads:
            if (model, version) not in self._kept:
                if PurePath(version).name != version:
                    raise BundleError(f"{version!r} is no version")
                manifest, files = read_bundle(self._settings.models / model / version, self._settings.key_folder)
                self._kept[model, version] = manifest, Explainer(read_trees(files[MODEL_FILE]))
                while len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((model, version))
            return self._kept[model, version]

    def explain(self, spec: ModelSpec, version: str | None, service_hash: str, values: Sequence[float | None],
                score: float | None) -> Explanation:
        """Why ``version`` gave ``values``, float64[F] with null as None, this ``score``; or why that cannot be said."""
        if version is None or score is None:
            return Explanation.failed("there was no model yet")
        try:
            manifest, explainer = self.of(spec.name, version)
        except BundleError as error:
            return Explanation.failed(error.fact)
        if manifest.service_hash != service_hash or len(values) != explainer.width:
            return Explanation.failed(f"made with features {service_hash}, the bundle has {manifest.service_hash}")
        explained = explainer(np.array([np.nan if value is None else value for value in values]))
        if (fault := fault_of(explained, score)) is not None:
            return Explanation.failed(fault)
        parts: dict[str, Any] = dict(zip(manifest.inputs, explained.parts.tolist(), strict=True))
        codes = {code.feature: code for code in spec.reasons}
        return Explanation(explained.base, explained.margin, parts, reasons_of(codes, manifest.inputs, values, explained.parts))
