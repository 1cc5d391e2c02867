"""What led to a thing: from a release up to the windows of the stream in which it began, from a prediction to its event and its model."""

from __future__ import annotations

from typing import Any

from feature_repo.models import ModelSpec, Outcomes
from jobs.linked import Found, events_of, predictions_within, wrong_within
from jobs.past_read import Copy
from schemas.monitoring import Detection, RetrainRequest
from schemas.releases import Release
from services.why.node import Node
from services.why.sources import (
    Sources,
    detection_node,
    evaluation_node,
    prediction_node,
    release_node,
    request_node,
)
from services.why.windows import LOSSES, about_evaluation, about_prediction, span
from services.words import iso

__all__ = ["event_node", "of_detection", "of_evaluation", "of_prediction", "of_release", "of_request", "of_version", "place"]


def place(topic: str, copy: Copy) -> str:
    return f"{topic}/{copy.partition}/{copy.offset}"


def event_node(found: Found, kind: str = "event") -> Node:
    record, first = found.record, found.places[0]
    copies = f", {len(found.places) - 1} later copies" if len(found.places) > 1 else ""
    return Node(kind, record.event_id, f"{place(found.topic, first)}, {iso(record.event_time)}, arrived {iso(first.arrival_ms)}{copies}",
                {"topic": found.topic, "partition": first.partition, "offset": first.offset, "event_time": record.event_time,
                 "arrival_ms": first.arrival_ms, "copies": len(found.places)})


def of_prediction(sources: Sources, spec: ModelSpec, one: Any) -> list[Node]:
    """Its event, its vector, and the release under which it was made; without a release on the chain its version."""
    where = Copy(one.source_partition, one.source_offset, one.arrival_ms)
    stands = place(spec.service.source, where) if where.partition >= 0 else "asked about by request"
    event = Node("event", one.event_id, f"{stands}, {iso(one.event_time)}, arrived {iso(one.arrival_ms)}",
                 {"topic": spec.service.source, "partition": where.partition, "offset": where.offset, "event_time": one.event_time})
    views = {stamp.view: f"{stamp.n} records, fingerprint {stamp.fingerprint}, applied {one.applied.get(stamp.view, [])}"
             for stamp in one.stamps}
    notes = "".join(f", {word}" for word in ("degraded", "late") if getattr(one, word))
    vector = Node("vector", f"{spec.service.name}@{one.service_hash}",
                  "; ".join(f"{stamp.view} {stamp.n} records {stamp.fingerprint}" for stamp in one.stamps) + notes, {"views": views},
                  more=f"headrace explain {one.prediction_id}{'' if where.partition >= 0 else ' --answer'}")
    causes = [event, vector]
    release = sources.told.release_of(one.model, one.model_version, one.arrival_ms, getattr(one, "epoch", None))
    if release is not None:
        causes.append(up(sources, release_node(release), of_release(sources, release)))
    elif one.model_version is not None:
        causes.append(version(sources, one.model, one.model_version))
    return causes


def of_evaluation(sources: Sources, spec: ModelSpec, one: Any, prediction: Node | None) -> list[Node]:
    """The prediction and the outcome that met in it."""
    causes = [prediction] if prediction is not None else []
    if isinstance(spec.labels, Outcomes):
        told = events_of(sources.known(), one.event_id, [spec.labels.topic])
        causes += [event_node(each, "outcome") for each in told
                   if each.record.event_time == one.event_time and each.record.revision == one.revision]
    return causes


def of_release(sources: Sources, one: Release) -> list[Node]:
    """Its version, the evidence it was bound to, and the request; the release before it by name."""
    causes = [version(sources, one.model, one.champion)]
    evidence = sources.evidence_node(one.model, one.release_id, one)
    request = sources.told.requests.get(one.release_id)
    if evidence is not None:
        causes.append(evidence)
    if request is not None:
        run = sources.run_node(request)
        causes.append(up(sources, run, [up(sources, request_node(request), of_request(sources, request))]))
    if one.epoch > 1:
        causes.append(Node("release", f"{one.model}@{one.epoch - 1}", f"it replaced version {one.previous}",
                           more=f"headrace why release:{one.model}@{one.epoch - 1}"))
    return causes


def of_request(sources: Sources, one: RetrainRequest) -> list[Node]:
    """The detections, or the person who asked; each by name, for what they are about is asked of them."""
    found = [sources.told.detections[name] for name in one.detections if name in sources.told.detections]
    causes = [short(detection_node(each)) for each in found[:sources.most]]
    if len(found) > sources.most:
        causes.append(Node("detections", one.retrain_id, f"{len(found) - sources.most} more", more=f"headrace why request:{one.retrain_id} "
                           f"--most {len(found)}"))
    asked = sources.told.asks.get(one.episode.removeprefix("manual:")) if one.episode.startswith("manual:") else None
    if asked is not None:
        causes.append(Node("ask", asked.ask_id, f"a person: {asked.why}", {"champion": asked.champion}))
    return causes


def of_version(sources: Sources, node: Node) -> list[Node]:
    """What it learnt from, and the retrain that it is of."""
    data = node.facts.get("data", {})
    found = sources.training_set_node(node)
    request = sources.told.requests.get(data.get("retrain_id", ""))
    if request is None:
        return [found] if found is not None else []
    run = up(sources, sources.run_node(request), [up(sources, request_node(request), of_request(sources, request))])
    return [*([found] if found is not None else []), run]


def of_detection(sources: Sources, one: Detection) -> list[Node]:
    """The predictions that it is about: how many, the first and the last, and the most telling; and the version it was watched against."""
    spec = sources.specs.get(one.model)
    causes: list[Node] = []
    if spec is not None and sources.archive is not None:
        causes.append(behind(sources, spec, one))
    if one.model_version:
        causes.append(short(sources.version_node(one.model, one.model_version)))
    return causes


def behind(sources: Sources, spec: ModelSpec, one: Detection) -> Node:
    first_ms, end_ms = span(one, spec)
    archive = sources.known()
    losses = one.family in LOSSES
    if losses:
        some = wrong_within(archive, spec, one.model_version, first_ms, end_ms, lambda each: about_evaluation(one, spec, each),
                            sources.most)
    else:
        own = None if one.family == "feed" else one.model_version
        some = predictions_within(archive, spec, own, first_ms, end_ms, lambda each: about_prediction(one, spec, each), sources.most)
    kind, made = ("evaluations", evaluation_node) if losses else ("predictions", prediction_node)
    ends = f", from {some.first.prediction_id} to {some.last.prediction_id}" if some.records else ""
    rest = f"headrace why detection:{one.detection_id} --most {some.records}" if some.records > len(some.sample) else ""
    return Node(kind, f"{iso(first_ms)}..{iso(end_ms)}", f"{some.records:,} of events that arrived then{ends}"
                + (f"; the {len(some.sample)} {'most wrong' if losses else 'highest'}:" if rest else ""),
                {"records": some.records, "first_ms": first_ms, "end_ms": end_ms,
                 **({"first": some.first.prediction_id, "last": some.last.prediction_id} if some.records else {})},
                causes=[made(each) for each in some.sample], more=rest)


def version(sources: Sources, model: str, name: str) -> Node:
    node = sources.version_node(model, name)
    if sources.once(node):
        found = sources.training_set_node(node)
        node.causes = [found] if found is not None else []
    return node


def up(sources: Sources, node: Node, causes: list[Node]) -> Node:
    """``node`` with its causes, where they are not told elsewhere in the tree."""
    if sources.once(node):
        node.causes = causes
    return node


def short(node: Node) -> Node:
    """By name, to be asked for."""
    node.facts, node.more = {}, f"headrace why {node.kind}:{node.id}"
    return node

