"""What is live: the release chain says it; where that is silent, the pointer beside the bundles. Who moves the pointer writes it there."""

from __future__ import annotations

from pathlib import Path

from feature_repo.bundle import bundle_folder, champion, load_bundle, promote
from feature_repo.use_cases import find_model, models, services
from schemas.errors import RuntimeFault
from schemas.releases import ROLLBACK, Chain, Release
from schemas.settings import Settings
from services.release_log import ReleaseLog
from services.runtime.endpoints import Endpoints, endpoints

__all__ = ["adopt_champions", "live_bundle", "read_chain", "record_release", "release_by_hand"]


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


def release_by_hand(settings: Settings, at: Endpoints, model: str, version: str, why: str, *, rollback: bool = False,
                    paused: bool | None = None) -> Release:
    """Make ``version`` live, once it is known to load as a scorer loads it. Saying the same again changes nothing.

    Raises BundleError where it cannot be served with the features that are live, JobError where MLflow refuses its alias.
    """
    from jobs.registry import make_live

    load_bundle(bundle_folder(settings.models, model, version), find_model(settings, model).service, settings.key_folder)
    log = ReleaseLog(at.kafka)
    try:
        live = log.catch_up().current(model)
        if live is not None and (live.champion, live.paused) == (version, live.paused if paused is None else paused):
            return live
        release = _release(settings, at, log, model, version, why, ROLLBACK + "person" if rollback else "person", paused)
    finally:
        log.close()
    make_live(settings, model, version)
    return release


def adopt_champions(settings: Settings, at: Endpoints) -> list[Release]:
    """Release what was made champion while no engines ran: a version that the chain has never named. Else the pointer follows the chain."""
    log, made = ReleaseLog(at.kafka), []
    try:
        chain = log.catch_up()
        for spec in models(settings):
            bundle, live = champion(settings.models, spec.name), chain.current(spec.name)
            if bundle is not None and bundle.name not in {release.champion for release in chain.history(spec.name)}:
                made.append(_release(settings, at, log, spec.name, bundle.name, "made champion while no engines ran", "up"))
            elif bundle is not None and live is not None and bundle.name != live.champion:  # who released it died before it moved that
                promote(settings.models, bundle_folder(settings.models, spec.name, live.champion))
    finally:
        log.close()
    return made


def _release(settings: Settings, at: Endpoints, log: ReleaseLog, model: str, version: str, why: str, by: str,
             paused: bool | None = None) -> Release:
    from feature_repo.online import SetReader  # loads the kernel, which `headrace up` seldom needs
    from services.lookup import clock_ms

    live, reader = log.chain.current(model), SetReader(at.redis, 5000, settings.partitions)
    try:
        at_ms = clock_ms(settings, reader, services(settings), nothing_ms=0)
    finally:
        reader.close()
    release = log.release(f"{by}:{model}:{version}:{live.epoch if live is not None else 0}", model, version, at_ms, why,
                          by.removeprefix(ROLLBACK), paused=paused)
    assert release is not None
    return release
