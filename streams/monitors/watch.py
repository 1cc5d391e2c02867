"""What is watched of a model: its policy, the topics that say something of it, the references of its versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from feature_repo.models import DriftPolicy, ModelSpec, Outcomes
from feature_repo.reference import Reference, read_reference
from schemas.evaluations import EVALUATIONS
from schemas.topics import valid_topic

__all__ = ["NO_VERSION", "Watch", "watched"]

NO_VERSION = ""
"""Of predictions that were made before there was a model."""


@dataclass
class Watch:
    """``partitions`` of each topic. ``labels``: what the join reads outcomes from, None where nobody tells them. ``read`` gives a version's
    reference; what was found once is kept, for it does not change.
    """

    model: str
    policy: DriftPolicy
    predictions: str
    service: str
    service_hash: str
    source: str
    labels: str | None
    partitions: int
    read: Callable[[str], Reference | None]
    _found: dict[str, Reference] = field(default_factory=dict)

    @property
    def places(self) -> list[str]:
        """Everything that has to have passed a window before it is judged."""
        topics = [self.predictions, EVALUATIONS] if self.labels is not None else [self.predictions]
        return [f"{topic}/{partition}" for topic in topics for partition in range(self.partitions)]

    def reference(self, version: str) -> Reference | None:
        """None where the version has none, or one that was made under another policy."""
        if version not in self._found and version != NO_VERSION:
            found = self.read(version)
            if found is None or (found.window_ms, found.age_ms) != (self.policy.window_ms, self.policy.age_ms):
                return None
            self._found[version] = found
        return self._found.get(version)


def watched(specs: Iterable[ModelSpec], models: Path, partitions: int) -> list[Watch]:
    """One of each model with a drift policy; ``models`` is the folder of their bundles."""
    return [Watch(spec.name, spec.drift, spec.service.predictions, spec.service.name, spec.service.definition_hash, spec.service.source,
                  valid_topic(spec.labels.topic) if isinstance(spec.labels, Outcomes) else None, partitions,
                  partial(read_reference, models, spec.name)) for spec in specs if spec.drift is not None]
