"""What is live: the release chain says it; where that is silent, the pointer beside the bundles. Who moves the pointer writes it there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from feature_repo.bundle import bundle_folder, champion, load_bundle, promote
from feature_repo.models import ModelSpec
from feature_repo.use_cases import find_model, models, services
from schemas.errors import JobError, RuntimeFault
from schemas.releases import Action, Chain, Release
from schemas.settings import Settings
from services.approvals import missing_approval
from services.canary import bucket
from services.release_log import ReleaseLog
from services.release_machine import Move, Refusal, next_release
from services.runtime.endpoints import Endpoints, endpoints

__all__ = ["act_by_hand", "adopt_champions", "champion_of", "deciding_bundle", "follow_chain", "live_bundle", "now_ms", "read_chain",
           "record_release"]


def read_chain(kafka: str) -> Chain:
    """The chain as it stands. Raises LogError where the broker does not answer."""
    log = ReleaseLog(kafka)
    try:
        return log.catch_up()
    finally:
        log.close()


def live_bundle(folder: Path, model: str, chain: Chain) -> tuple[Path, int | None] | None:
    """(bundle, epoch) of what is live of ``model``; None before there is any. ``folder`` is that of all models.

    Raises BundleError where the bundle is not there or was changed.
    """
    release = chain.current(model)
    if release is not None:
        return bundle_folder(folder, model, release.champion), release.epoch
    bundle = champion(folder, model)
    return None if bundle is None else (bundle, None)


def deciding_bundle(folder: Path, spec: ModelSpec, chain: Chain, event: Any) -> Path | None:
    """The bundle that ``event`` would be scored by now: the live one, or that of a canary which its entity is in."""
    release = chain.current(spec.name)
    canary = release.canary if release is not None else None
    if canary is not None and bucket(canary.salt, getattr(event, spec.subject)) < canary.share:
        return bundle_folder(folder, spec.name, canary.version)
    live = live_bundle(folder, spec.name, chain)
    return None if live is None else live[0]


def record_release(settings: Settings, model: str, version: str, why: str, *, by: str) -> Release | None:
    """The record that ``version`` is live now, by the stream's time; the one that said so last, if it did. None where no engines run.

    Raises LogError or StoreError where an engine is there and does not answer.
    """
    try:
        at = endpoints(settings)
    except RuntimeFault:  # a model may be trained on the tables alone
        return None
    log = ReleaseLog(at.kafka)
    try:
        live = log.catch_up().current(model)
        if live is not None and live.champion == version:
            return live
        return _release(settings, at, log, model, version, why, by)
    finally:
        log.close()


def act_by_hand(settings: Settings, at: Endpoints, action: Action, model: str, why: str, *, dry_run: bool = False, **told: Any) -> Release:
    """What a person asks for, carried out on what is live; saying the same again changes nothing. ``told`` are fields of ``Move``.

    A version that is to score something is loaded first as a scorer loads it. With ``dry_run`` it returns what would be written. Raises
    BundleError where a version cannot be served with the features that are live, JobError where the state of the release does not allow
    the action, or MLflow refuses its alias.
    """
    log = ReleaseLog(at.kafka)
    try:
        chain = log.catch_up()
        live, version = chain.current(model), told.get("version", "")
        epoch = live.epoch if live is not None else 0
        asked = Move(action, f"person:{model}:{action}:{version}:{epoch}", model, "person", now_ms(settings, at), why, **told)
        release = next_release(chain, asked)
        for each in _to_load(live, release):
            load_bundle(bundle_folder(settings.models, model, each), find_model(settings, model).service, settings.key_folder)
        if version and isinstance(release, Release) and release != live:
            release = missing_approval(settings, at.kafka, find_model(settings, model).risk_class, model, version) or release
        if not dry_run and isinstance(release, Release):
            release = log.act(asked)
    finally:
        log.close()
    if isinstance(release, Refusal):
        raise JobError(release.fact, hint=release.hint)
    if not dry_run:
        follow_chain(settings, release)
    return release


def follow_chain(settings: Settings, live: Release) -> None:
    """The pointer and MLflow's aliases say what the chain says. Whoever writes a release does this next; doing it again changes nothing."""
    from jobs.registry import make_live

    if champion_of(settings, live.model) != live.champion:
        make_live(settings, live.model, live.champion)


def _to_load(live: Release | None, after: Release | Refusal) -> list[str]:
    """Versions that score by ``after`` and did not by ``live``."""
    if isinstance(after, Refusal):
        return []
    known, wanted = (() if live is None else _scoring(live)), _scoring(after)
    return [each for each in wanted if each not in known]


def _scoring(release: Release) -> tuple[str, ...]:
    return release.champion, *(() if release.canary is None else (release.canary.version,)), *release.shadows


def champion_of(settings: Settings, model: str) -> str | None:
    """The version that the pointer beside the bundles names."""
    bundle = champion(settings.models, model)
    return None if bundle is None else bundle.name


def adopt_champions(settings: Settings, at: Endpoints) -> list[Release]:
    """Release what was made champion while no engines ran: a version that the chain has never named, and approved where that is asked for
    and it is not the first. Else the pointer follows the chain."""
    log, made = ReleaseLog(at.kafka), []
    try:
        chain = log.catch_up()
        for spec in models(settings):
            bundle, live = champion(settings.models, spec.name), chain.current(spec.name)
            unseen = bundle is not None and bundle.name not in {release.champion for release in chain.history(spec.name)}
            if bundle is not None and unseen and (live is None or missing_approval(settings, at.kafka, spec.risk_class, spec.name,
                                                                                   bundle.name) is None):
                made.append(_release(settings, at, log, spec.name, bundle.name, "made champion while no engines ran", "up"))
            elif bundle is not None and live is not None and bundle.name != live.champion:  # who released it died before it moved that
                promote(settings.models, bundle_folder(settings.models, spec.name, live.champion))
    finally:
        log.close()
    return made


def _release(settings: Settings, at: Endpoints, log: ReleaseLog, model: str, version: str, why: str, by: str) -> Release:
    live = log.chain.current(model)
    release = log.act(Move("champion", f"{by}:{model}:{version}:{live.epoch if live is not None else 0}", model, by, now_ms(settings, at),
                            why, version))
    if isinstance(release, Refusal):
        raise JobError(release.fact, hint=release.hint)
    return release


def now_ms(settings: Settings, at: Endpoints) -> int:
    """By the stream's clock; 0 where nothing was scored yet."""
    from feature_repo.online import SetReader  # loads the kernel, which `headrace up` seldom needs
    from services.lookup import clock_ms

    reader = SetReader(at.redis, 5000, settings.partitions)
    try:
        return clock_ms(settings, reader, services(settings), nothing_ms=0)
    finally:
        reader.close()
