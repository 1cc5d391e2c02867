"""Why this score: one archived prediction with its model, what each feature contributed, and the raw events that each was made from.

All of it follows from the archive and the model bundle; neither Kafka nor Redis is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import msgspec
import numpy as np

from feature_repo.archive_table import ArchiveTable, open_archive
from feature_repo.bundle import champion, load_bundle, read_bundle
from feature_repo.explainer import Explainer, fault_of, reasons_of
from feature_repo.kernel import EXCLUDE, INCLUDE, NONE, sort_order
from feature_repo.layout import packer
from feature_repo.manifest import MANIFEST_FILE, MODEL_FILE, sha256
from feature_repo.models import ModelSpec, Outcomes
from feature_repo.positions import offset_of, partition_of
from feature_repo.trees import read_trees
from feature_repo.use_cases import USE_CASES, use_cases
from feature_repo.vector import request_features
from feature_repo.views import FeatureService, FeatureView
from jobs.classify import Read, Verdict, find_set, same_values
from jobs.parity import WHY
from jobs.past_read import Found, History, Rows, find_answer, find_prediction, read_history
from schemas.errors import BundleError
from schemas.settings import Settings
from schemas.topics import SOURCES

__all__ = ["MOST_EVENTS", "explain"]

MOST_EVENTS = 100
PATH_DEPENDENT = "exact TreeSHAP, path-dependent: log-odds against the mean over the training rows"
HALF_AND_HALF = "exact TreeSHAP over even splits (this bundle has no row counts): log-odds"


def explain(settings: Settings, prediction_id: str, most_events: int = MOST_EVENTS, *, answer: bool = False) -> dict[str, Any]:
    """Everything that is known of a prediction, as JSON's types; times in ms since 1970.

    Of each view the newest ``most_events`` events (by arrival) are told, and all that were in flight or late. With ``answer`` it is
    about the newest answer to a request, not about the log's prediction of the same id. Raises JobError where there is no archive, or no
    such prediction in it.
    """
    archive = open_archive(settings)
    find = find_answer if answer else find_prediction
    found = find(archive, (spec for case in use_cases(settings, USE_CASES) for spec in case.models), prediction_id)
    prediction, spec = found.prediction, found.spec
    service, first = spec.service, found.copies[0]
    same_definition = prediction.service_hash == service.definition_hash and len(prediction.features) == len(service.feature_names)
    vector = np.array([math.nan if value is None else value for value in prediction.features])
    facts: dict[str, Any] = {
        "prediction_id": prediction_id, "event_id": prediction.event_id, "event_time": prediction.event_time,
        "arrival_ms": prediction.arrival_ms, "entities": {name: getattr(prediction, name) for name in service.entities},
        "source": {"topic": service.source, "partition": prediction.source_partition, "offset": prediction.source_offset},
        "logged": {"topic": found.topic, "partition": first.partition, "offset": first.offset, "arrival_ms": first.arrival_ms,
                   "copies": len(found.copies)},
        "decision": {"score": prediction.score, "threshold": prediction.threshold, "alert": prediction.alert,
                     "degraded": prediction.degraded, "late": prediction.late},
        "features_of": f"{service.name}@{prediction.service_hash}", "archive_version": archive.version,
    }
    if not same_definition:
        return {**facts, "fault": f"made with features {service.name}@{prediction.service_hash}, declared are {service.definition_hash}: "
                                  "its values have no names and no events here", "values": prediction.features}
    history = read_history(archive, found, most_events)
    facts["model"], parts = _model(settings, spec, prediction, vector)
    facts["views"] = [_view(view, found, history, vector, most_events) for view in service.views]
    facts["request"] = _request(service, history.event, vector)
    facts["reasons"] = [] if parts is None else msgspec.to_builtins(
        reasons_of({code.feature: code for code in spec.reasons}, service.feature_names, prediction.features, parts))
    facts["features"] = _features(service, vector, parts, facts["views"])
    facts["outcome"] = _outcome(archive, spec, prediction, history)
    return facts


def _model(settings: Settings, spec: ModelSpec, prediction: Any, vector: Any) -> tuple[dict[str, Any], Any]:
    """What is known of the model, and float64[F]: the contributions (None: there are none to tell)."""
    version = prediction.model_version
    model: dict[str, Any] = {"name": prediction.model, "version": version}
    if version is None:
        return {**model, "fault": "there was no model yet: the vector was logged without a score"}, None
    folder = settings.models / prediction.model / version
    try:
        if PurePath(version).name != version:
            raise BundleError(f"{version!r} is no version")
        manifest = load_bundle(folder, spec.service, settings.key_folder).manifest
        files = read_bundle(folder, settings.key_folder)[1]
        trees = read_trees(files[MODEL_FILE])
    except BundleError as error:
        return {**model, "fault": error.fact}, None
    explained = Explainer(trees)(vector)
    if (fault := fault_of(explained, prediction.score)) is not None:
        return {**model, "fault": fault}, None
    return {**model, "bundle": str(folder), "manifest_sha256": sha256(files[MANIFEST_FILE]),
            "champion_now": champion(settings.models, spec.name) == folder, "label": manifest.label, "train": manifest.train,
            "test": manifest.test, "metrics": manifest.metrics.get("model", {}), "data": manifest.data, "git_commit": manifest.git_commit,
            "contributions": PATH_DEPENDENT if trees.counted else HALF_AND_HALF, "base": explained.base,
            "margin": explained.margin}, explained.parts


def _view(view: FeatureView, found: Found, history: History, vector: Any, most_events: int) -> dict[str, Any]:
    prediction, service = found.prediction, found.spec.service
    rows, own = history.of_views[view.name], view.source == service.source
    stamp = next((stamp for stamp in prediction.stamps if stamp.view == view.name), None)
    at = [prediction.arrival_ms, found.position]
    arrived = (rows.arrivals[:, 0] < at[0]) | ((rows.arrivals[:, 0] == at[0]) & (rows.arrivals[:, 1] < at[1]))
    current, mode = np.zeros(view.record_words, np.int64), NONE
    if own and history.event is not None:
        current, mode = np.frombuffer(packer(view)(history.event), "<i8"), INCLUDE if view.include_current else EXCLUDE
    verdict, used = _verdict(view, found, history, vector, stamp, current, mode, np.array(at))
    mine = (rows.arrivals[:, 1] == at[1]) & (mode == INCLUDE)
    used = (arrived & rows.admitted if used is None else used) | mine
    if mode == EXCLUDE:
        used &= (rows.records[:, :2] != current[:2]).any(axis=1)
    counted = _without_copies(view, rows, used)
    states = np.select([mine, used & ~counted, used & ~arrived, used, ~rows.admitted & arrived, arrived],
                       ["scored", "copy", "seen_early", "used", "late", "not_seen"], "arrived_later")
    told = np.flatnonzero(states != "arrived_later")
    told = told[np.argsort(-rows.arrivals[told, 0], kind="stable")]
    special = ~np.isin(states[told], ("used", "copy"))
    shown = told[(np.arange(len(told)) < most_events) | special]
    edge = prediction.event_time - view.delay_ms
    times = rows.records[counted, 0]
    return {
        "view": view.versioned_name, "entity": {view.entity: getattr(prediction, view.entity)}, "source": view.source,
        "verdict": verdict.name.lower(), "why": WHY.get(verdict), "delay_ms": view.delay_ms,
        "n": stamp.n if stamp else None, "fingerprint": stamp.fingerprint if stamp else None,
        "applied": list(prediction.applied.get(view.name, [])), "states": {str(s): int((states == s).sum()) for s in np.unique(states)},
        "counted": {feature.name: int((times > edge - feature.window_ms).sum()) for feature in view.features},
        "events_told": len(shown), "events": [_event(view, rows, i, str(states[i]), bool(counted[i]), edge, history) for i in shown],
    }


def _verdict(view: FeatureView, found: Found, history: History, vector: Any, stamp: Any, current: Any, mode: int,
             horizon: Any) -> tuple[Verdict, Any]:
    """As parity has it, and bool[m]: which of the view's rows were read; None where that is not known."""
    prediction, service, rows = found.prediction, found.spec.service, history.of_views[view.name]
    served = vector[service.view_slice(view)]
    if history.event is None or history.event.event_id != prediction.event_id:
        return Verdict.NOT_ARCHIVED, None
    if stamp is None:
        return Verdict.DEGRADED if prediction.degraded else Verdict.NO_STAMP, None
    if stamp.refused:
        return Verdict.REFUSED if np.isnan(served).all() else Verdict.REFUSED_WITH_VALUES, None
    fingerprint = int(stamp.fingerprint, 16)
    admitted = np.flatnonzero(rows.admitted)
    verdict, within = find_set(Read(
        view, rows.records[admitted], rows.arrivals[admitted], prediction.event_time, current, mode, horizon,
        np.array(prediction.applied.get(view.name, ()), np.int64), served, stamp.n, fingerprint - (fingerprint >> 63 << 64)))
    if within is None:
        return verdict, None
    used = np.zeros(len(rows.records), bool)
    used[admitted[within]] = True
    return verdict, used


def _without_copies(view: FeatureView, rows: Rows, used: Any) -> Any:
    """bool[m]: of each identity among the used rows the one that counts."""
    at = np.flatnonzero(used)
    at = at[sort_order(view, np.zeros(len(at), np.int64), rows.records[at])]
    last = np.ones(len(at), bool)
    last[:-1] = (rows.records[at[1:], :2] != rows.records[at[:-1], :2]).any(axis=1)
    counted = np.zeros(len(rows.records), bool)
    counted[at[last]] = True
    return counted


def _event(view: FeatureView, rows: Rows, i: int, state: str, counted: bool, edge: int, history: History) -> dict[str, Any]:
    time, (arrival, position) = int(rows.records[i, 0]), rows.arrivals[i].tolist()
    value = history.values.get(position)
    event = SOURCES[view.source].decode(value) if value is not None else None
    columns = {column.field: int(rows.records[i, 2 + c]) for c, column in enumerate(view.columns) if not column.hashed}
    if event is not None:
        columns = {name: getattr(event, name) for name in event.__struct_fields__ if name not in ("event_id", "event_time", view.entity)}
    windows = sorted({feature.window_ms for feature in view.features if time > edge - feature.window_ms}) if counted else []
    return {"topic": view.source, "partition": int(partition_of(position)), "offset": int(offset_of(position)),
            "event_id": event.event_id if event is not None else None, "event_time": time, "arrival_ms": arrival, "state": state,
            "windows_ms": windows, "columns": columns}


def _request(service: FeatureService, event: Any, vector: Any) -> dict[str, Any]:
    """Whether the request-time features follow from the event and the served window features."""
    if event is None:
        return {"follows": None}
    again = vector[None].copy()
    request_features(service, again, {name: np.array([getattr(event, name)], np.int64) for name in service.event_columns})
    return {"follows": same_values(again[0], vector), "event": {name: getattr(event, name) for name in service.event_columns}}


def _features(service: FeatureService, vector: Any, parts: Any, views: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every feature in the model's order."""
    origin: dict[str, dict[str, Any]] = {}
    for view, told in zip(service.views, views, strict=True):
        for feature in view.features:
            origin[feature.name] = {"view": view.name, "function": feature.function, "window_ms": feature.window_ms,
                                    "events": told["counted"][feature.name]}
    for asked in service.request:
        origin[asked.name] = {"view": None, "doc": asked.doc}
    return [{"name": name, "value": None if np.isnan(vector[i]) else float(vector[i]),
             "contribution": None if parts is None else float(parts[i]), **origin[name]} for i, name in enumerate(service.feature_names)]


def _outcome(archive: ArchiveTable, spec: ModelSpec, prediction: Any, history: History) -> dict[str, Any]:
    """The label, every record it was made from, in order of arrival; ``value`` None: not known (yet)."""
    topic = spec.labels.topic
    told = [(arrival, position, SOURCES[topic].decode(value)) for arrival, position, value in sorted(history.label_rows)]
    mature_ms = prediction.event_time + spec.label_delay_ms
    if isinstance(spec.labels, Outcomes):
        told = [row for row in told if row[2].event_id == prediction.event_id]  # its hash it has for certain
        name = spec.labels.field
        value = max(((event.revision, int(getattr(event, name))) for _, _, event in told), default=(0, None))[1]
    else:
        name, value = "", 0 if told else 1 if archive.newest_ms >= mature_ms else None
    return {"label": spec.label, "value": value, "mature_ms": mature_ms, "archived_until_ms": archive.newest_ms, "records": [
        {"topic": topic, "partition": int(partition_of(position)), "offset": int(offset_of(position)), "arrival_ms": arrival,
         "event_id": event.event_id, "event_time": event.event_time, "revision": getattr(event, "revision", 0),
         **({name: getattr(event, name)} if name else {})} for arrival, position, event in told]}

