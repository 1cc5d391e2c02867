"""The model registry: every trained model is a run and a registered version in MLflow, and a bundle in the models folder."""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from feature_repo.bundle import Manifest, champion, load_bundle, promote, write_bundle
from feature_repo.manifest import MANIFEST_FILE, decode, read_plain
from feature_repo.reference import write_reference
from jobs.lineage import lineage
from jobs.model_card import model_card
from jobs.train import TrainResult
from schemas.errors import BundleError, JobError
from schemas.settings import Settings

__all__ = ["Registered", "find_registered", "make_live", "record_gates", "register"]


@dataclass(frozen=True)
class Registered:
    """Where a model went. ``alias`` is ``champion`` or ``challenger``."""

    model: str
    version: str
    alias: str
    folder: Path
    run_id: str


def register(settings: Settings, result: TrainResult, *, make_champion: bool = False, promote_first: bool = True) -> Registered:
    """Write the bundle, record it in MLflow, and make it champion if ``make_champion`` says so, or there is none and ``promote_first``.

    A bundle goes live only after it was loaded from disk as a scorer loads it. A version that fails before that stays in the
    registry without an alias.
    """
    name = result.spec.name
    with lineage(settings, "register") as told, tracking_client(settings) as client:
        table = result.manifest.data.get("table")
        if table is not None:
            told.reads_table(f"{settings.tables}/training_sets/{table}", result.manifest.data.get("version"))
        run = client.create_run(experiment(client, settings, name), run_name="train " + "..".join(result.manifest.train))
        run_id = run.info.run_id
        log_run(client, run_id, result)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        made = client.create_model_version(name, source=f"{run.info.artifact_uri}/bundle", run_id=run_id)
        version = str(made.version)
        folder = settings.models / name / version
        known = {**result.manifest.data, "mlflow_run_id": run_id, **_trainer(settings, result)}
        manifest = msgspec.structs.replace(result.manifest, version=version, data=known)
        write_bundle(folder, manifest, result.onnx, result.golden, model_card(manifest, result.spec.blocks), settings.key_folder)
        load_bundle(folder, result.spec.service, settings.key_folder)
        if result.reference is not None:  # before it can go live: monitors count in its bins from the first prediction on
            write_reference(settings.models, msgspec.structs.replace(result.reference, version=version))
        client.log_artifacts(run_id, str(folder), "bundle")
        client.set_terminated(run_id)
        live = make_champion or (promote_first and champion(settings.models, name) is None)
        if live:
            promote(settings.models, folder)
        set_aliases(client, name, version, live)
        told.writes_file(folder, version)
    return Registered(name, version, "champion" if live else "challenger", folder, run_id)


def _trainer(settings: Settings, result: TrainResult) -> dict[str, str]:
    """Who must not approve it. Empty where nobody is known; a retrain is the runner's."""
    if "retrain_id" in result.manifest.data:
        return {"trained_by": "runner"}
    try:
        return {"trained_by": settings.person or getpass.getuser()}
    except (KeyError, OSError):
        return {}


def find_registered(settings: Settings, name: str, retrain_id: str) -> Path | None:
    """The bundle that an earlier run of the same retrain left; the newest of several."""
    own = []
    for path in (settings.models / name).glob(f"*/{MANIFEST_FILE}"):
        folder = path.parent
        with suppress(BundleError):  # one that cannot be read is nobody's
            data = decode(read_plain(folder, MANIFEST_FILE), Manifest, path).data
            if data.get("retrain_id") == retrain_id and not folder.name.startswith("."):
                own.append(folder)
    return max(own, key=lambda folder: int(folder.name), default=None)


def make_live(settings: Settings, name: str, version: str) -> Path:
    """Point at ``version`` as the champion, here and in MLflow; ``previous`` is what was before. Doing it again changes nothing."""
    folder = settings.models / name / version
    promote(settings.models, folder)
    with tracking_client(settings) as client:
        set_aliases(client, name, version, live=True)
    return folder


def record_gates(settings: Settings, name: str, version: str, tags: Mapping[str, str], files: Mapping[str, str]) -> None:
    """What the gates said of a version: ``tags`` on it and on its run, ``files`` (name, text) among the run's artifacts."""
    with tracking_client(settings) as client:
        run_id = client.get_model_version(name, version).run_id
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
            client.set_tag(run_id, key, value)
        for file, text in files.items():
            client.log_text(run_id, text, file)


@contextmanager
def tracking_client(settings: Settings) -> Iterator[Any]:
    """MLflow's client; its errors become ours. Quiet: no usage statistics leave the machine, no migration is narrated."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow 3.17 lets some of its database's errors through

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    settings.home.mkdir(parents=True, exist_ok=True)
    try:
        yield MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)
    except (MlflowException, SQLAlchemyError) as error:
        raise JobError(f"MLflow refused: {error}", hint="see HEADRACE_MLFLOW and `headrace doctor`") from error


def experiment(client: Any, settings: Settings, name: str) -> str:
    """The id of the experiment of that name; with the embedded database its artifacts lie in the home folder."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None if settings.mlflow else (settings.home.resolve() / "mlflow").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def log_run(client: Any, run_id: str, result: TrainResult) -> None:
    manifest = result.manifest
    parameters = {**manifest.parameters, "train": "..".join(manifest.train), "test": "..".join(manifest.test)}
    tags = {"service_hash": manifest.service_hash, "git_commit": manifest.git_commit or "unknown",
            **{f"data.{key}": str(value) for key, value in manifest.data.items()}}
    for key, value in parameters.items():
        client.log_param(run_id, key, value)
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    client.log_metric(run_id, "threshold", manifest.threshold)
    for who, values in manifest.metrics.items():
        for key, value in values.items():
            client.log_metric(run_id, key if who == "model" else f"{who}.{key}", value)


def set_aliases(client: Any, name: str, version: str, live: bool) -> None:
    """``champion`` moves to a live version and leaves ``previous`` where it was; any other version is ``challenger``."""
    if not live:
        client.set_registered_model_alias(name, "challenger", version)
        return
    before = client.get_registered_model(name).aliases.get("champion")
    if before is not None and str(before) != version:
        client.set_registered_model_alias(name, "previous", str(before))
    client.set_registered_model_alias(name, "champion", version)
