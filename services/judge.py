"""What a scorer judges with: the live feature service and the released model, looked at anew once a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from feature_repo.bundle import Model, bundle_folder, load_bundle
from feature_repo.models import ModelSpec
from feature_repo.online import Reading
from feature_repo.use_cases import find_model
from feature_repo.vector import VectorBuilder
from feature_repo.versions import read_registry
from schemas.errors import BundleError, DefinitionError, LogError
from schemas.releases import Canary, Chain
from schemas.settings import Settings
from schemas.topics import SOURCES
from services.canary import Split
from services.release_log import ReleaseLog
from services.releasing import live_bundle
from services.scoring import Arrived, Scored, predict

__all__ = ["Judge"]

log = logging.getLogger("scorer")
LOOK_EVERY_S, ANSWER_S = 1.0, 5.0


@dataclass(frozen=True)
class Live:
    """What decides now. Taken up in one step: no event is scored by half of one release and half of another."""

    model: Model | None = None
    epoch: int | None = None
    split: Split | None = None


class Judge:
    """Definitions and model of one scorer. A model that does not fit the service that is live is not used.

    What was live before, and a canary's candidate, stay loaded: to go forward or back takes no longer than to read of it.

    Which model it is the release chain says; where that is silent, or there is no Kafka, the pointer beside the bundles.
    """

    def __init__(self, settings: Settings, model: str | None) -> None:
        self._settings = settings
        self._releases = ReleaseLog(settings.kafka, ANSWER_S) if settings.kafka else None
        self._definitions = read_registry(settings).epoch
        self.spec = self._declared(model)
        self.builder = VectorBuilder(self.spec.service)
        self._live = Live()
        self._warm: dict[Path, Model] = {}
        self._seen: tuple[Path, int | None] | None = None
        self._next, self._caught_up = 0.0, False

    @property
    def model(self) -> Model | None:
        """The champion that is scored with now."""
        return self._live.model

    @property
    def epoch(self) -> int | None:
        """Of the release that says what is scored with."""
        return self._live.epoch

    @property
    def canary(self) -> tuple[str | None, int] | None:
        """(version, share of 10,000) of the one under way; version None where it could not be loaded here."""
        split = self._live.split
        return None if split is None else (split.candidate.version if split.candidate is not None else None, split.share)

    def refresh(self, complete: Callable[[], None]) -> None:
        """See what is live now. Before other definitions are taken, ``complete`` is called: what was begun ends with these."""
        if time.monotonic() < self._next:
            return
        self._follow()
        self._next = time.monotonic() + LOOK_EVERY_S
        try:
            if (epoch := read_registry(self._settings).epoch) != self._definitions:
                self._definitions = epoch
                spec = self._declared(self.spec.name)
                if spec.service.definition_hash != self.spec.service.definition_hash:
                    complete()
                    self._take(spec)
        except DefinitionError as error:
            log.error("definitions refused, those before them stay: %s", error)
        self._refresh_model()

    def predict(self, arrived: Sequence[Arrived], reading: Reading | None, read_ms: int) -> list[Scored]:
        live = self._live
        return predict(self.spec.name, self.builder, arrived, reading, live.model, read_ms, live.epoch, live.split)

    def warm_up(self) -> None:
        """Compile and load everything before joining the group: a rebalance must not wait for a compiler."""
        event = SOURCES[self.spec.service.source].blank()
        nothing: list[dict[str, bytes | None]] = [{getattr(event, view.entity): None} for view in self.spec.service.views]
        self.predict([Arrived(event, 0, 0, 0, False)], Reading(((),) * len(nothing), tuple(nothing)), 0)

    def _declared(self, model: str | None) -> ModelSpec:
        """The model with what is live. Raises DefinitionError where that has request-time features which this code does not know."""
        spec = find_model(self._settings, model)
        live, known = read_registry(self._settings).services.get(spec.service.name), {feature.name for feature in spec.service.request}
        if live is not None and (unknown := [name for name in live.request if name not in known]):
            raise DefinitionError(f"this process has no request-time features {', '.join(unknown)}, which are live",
                                  hint="restart it with the code that was applied")
        return spec

    def _take(self, spec: ModelSpec) -> None:
        log.info("scoring with features=%s@%s", spec.service.name, spec.service.definition_hash)
        self.spec, self.builder = spec, VectorBuilder(spec.service)
        self._live, self._seen = Live(), None
        self._warm.clear()

    def _follow(self) -> None:
        """Read on in the chain. Who begins while Kafka is down goes by the pointer, which follows the chain, until that answers."""
        if self._releases is None:
            return
        if self._caught_up:
            self._releases.poll()
            return
        try:
            self._releases.catch_up()
            self._caught_up = True
        except LogError as error:
            log.warning("release chain not read, the pointer decides: %s", error)

    def _refresh_model(self) -> None:
        chain = self._releases.chain if self._releases is not None else Chain()
        try:
            live = live_bundle(self._settings.models, self.spec.name, chain)
            if live is None or live == self._seen:
                return
            self._seen = live  # one that is refused is not tried again
            release = chain.current(self.spec.name)
            self._load(*live, release.canary if release is not None else None)
        except BundleError as error:
            log.error("bundle refused, the model before it stays: %s", error)
            self._stay()

    def _stay(self) -> None:
        """A scorer that starts between a promotion and the switch it is for takes the champion that is leaving."""
        left = read_registry(self._settings).leaving.get(self.spec.name)
        if self.model is None and left is not None:
            try:
                self._load(self._settings.models / left, None)
            except BundleError as error:
                log.error("bundle refused: %s", error)

    def _load(self, folder: Path, epoch: int | None, canary: Canary | None = None) -> None:
        model, split = self._loaded(folder), self._split(canary) if canary is not None else None
        kept = {folder, *(path for path, each in self._warm.items() if each is self.model)}  # of what was live before
        if canary is not None:
            kept.add(self._settings.models / self.spec.name / canary.version)
        elif self._live.split is not None and self._live.split.candidate is not None:
            kept.add(self._settings.models / self.spec.name / self._live.split.candidate.version)
        self._warm = {path: each for path, each in self._warm.items() if path in kept}
        self._live = Live(model, epoch, split)
        log.info("scoring with model=%s version=%s epoch=%s canary=%s", model.name, model.version, epoch, self.canary)

    def _loaded(self, folder: Path) -> Model:
        if folder not in self._warm:
            self._warm[folder] = load_bundle(folder, self.spec.service, self._settings.key_folder)
        return self._warm[folder]

    def _split(self, canary: Canary) -> Split:
        candidate = None
        try:
            candidate = self._loaded(bundle_folder(self._settings.models, self.spec.name, canary.version))
        except BundleError as error:
            log.error("candidate refused, the champion scores its events: %s", error)
        return Split(attrgetter(self.spec.subject), canary.salt, canary.share, candidate)
