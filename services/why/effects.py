"""What came of a thing: from an event down to the releases that it helped to bring about, and to what was predicted under them."""

from __future__ import annotations

from typing import Any

from feature_repo.models import ModelSpec
from jobs.linked import evaluations_of, predictions_within
from schemas.admission import MAX_SKEW_MS
from schemas.monitoring import Detection, RetrainRequest
from schemas.releases import Release
from services.why.node import Node
from services.why.sources import Sources, detection_node, evaluation_node, prediction_node, release_node, request_node
from services.why.windows import about_evaluation, about_prediction
from services.words import iso

__all__ = ["of_detection", "of_evaluation", "of_prediction", "of_release", "of_request", "of_version"]

LAST_MS = 4_102_444_800_000


def of_prediction(sources: Sources, spec: ModelSpec, one: Any) -> list[Node]:
    """The signals that counted it, and its evaluations."""
    effects = detections(sources, [each for each in sources.told.detections.values() if about_prediction(each, spec, one)])
    for found in evaluations_of(sources.known(), one.prediction_id, one.arrival_ms - MAX_SKEW_MS):
        node = evaluation_node(found.record)
        if sources.once(node):
            node.effects = of_evaluation(sources, spec, found.record)
        effects.append(node)
    return effects


def of_evaluation(sources: Sources, spec: ModelSpec, one: Any) -> list[Node]:
    return detections(sources, [each for each in sources.told.detections.values() if about_evaluation(each, spec, one)])


def detections(sources: Sources, found: list[Detection]) -> list[Node]:
    """Each with what came of it, up to ``most``; those of which a retrain came first."""
    asked = {name for request in sources.told.requests.values() for name in request.detections}
    found = sorted(found, key=lambda each: (each.detection_id not in asked, each.until_ms))
    nodes = []
    for each in found[:sources.most]:
        node = detection_node(each)
        if sources.once(node):
            node.effects = of_detection(sources, each)
        nodes.append(node)
    if len(found) > sources.most:
        nodes.append(Node("detections", "", f"{len(found) - sources.most} more; --most {len(found)} tells them"))
    return nodes


def of_detection(sources: Sources, one: Detection) -> list[Node]:
    """The requests that it is evidence of; where it is of none, what was said of it last."""
    effects = [request(sources, each) for each in sources.told.requests.values() if one.detection_id in each.detections]
    if not effects:
        last: dict[str, Any] = {each.by: each for each in sources.told.decisions.values() if one.detection_id in each.evidence}
        effects = [Node("decision", each.decision_id, f"{each.by}, {iso(each.at_ms)}: {each.what}, {each.reason}",
                        {"by": by, "what": each.what, "reason": each.reason, "at_ms": each.at_ms}) for by, each in sorted(last.items())]
    return effects


def request(sources: Sources, one: RetrainRequest) -> Node:
    node = request_node(one)
    if sources.once(node):
        node.effects = of_request(sources, one)
    return node


def of_request(sources: Sources, one: RetrainRequest) -> list[Node]:
    """Its run, what the gates saw, and the release, where there is one."""
    released = sources.told.release_from(one.retrain_id)
    evidence = sources.evidence_node(one.model, one.retrain_id, released)
    effects = [sources.run_node(one), *([evidence] if evidence is not None else [])]
    if released is not None:
        node = release_node(released)
        if sources.once(node):
            node.effects = successor(sources, released)
            node.more = f"headrace why release:{node.id}"
        effects.append(node)
    elif evidence is not None and evidence.facts.get("version") is not None:
        effects.append(Node("version", f"{one.model}@{evidence.facts['version']}", "the candidate; it was not released"))
    return effects


def of_release(sources: Sources, one: Release) -> list[Node]:
    """The predictions that were made under it, and the release that replaced it."""
    spec, effects = sources.specs.get(one.model), []
    if spec is not None and sources.archive is not None:
        def under(each: Any) -> bool:
            return sources.told.release_of(each.model, each.model_version, each.arrival_ms, each.epoch) == one

        some = predictions_within(sources.archive, spec, one.champion, one.at_ms, LAST_MS, under, sources.most)
        ends = f", from {some.first.prediction_id} to {some.last.prediction_id}" if some.records else ""
        rest = f"headrace why release:{one.model}@{one.epoch} --most {some.records}" if some.records > len(some.sample) else ""
        effects.append(Node("predictions", f"{one.model}@{one.epoch}", f"{some.records:,} archived{ends}"
                            + (f"; the {len(some.sample)} highest:" if rest else ""),
                            {"records": some.records, **({"first": some.first.prediction_id, "last": some.last.prediction_id,
                                                          "first_ms": some.first.arrival_ms, "last_ms": some.last.arrival_ms}
                                                         if some.records else {})},
                            effects=[prediction_node(each) for each in some.sample], more=rest))
    return [*effects, *successor(sources, one)]


def successor(sources: Sources, one: Release) -> list[Node]:
    return [Node("release", f"{each.model}@{each.epoch}", f"replaced it {iso(each.at_ms)}: version {each.champion}, {each.why}",
                 more=f"headrace why release:{each.model}@{each.epoch}")
            for each in sources.told.chain.history(one.model) if each.epoch == one.epoch + 1]


def of_version(sources: Sources, model: str, version: str) -> list[Node]:
    """Each time that it was made live."""
    effects = []
    for one in sources.told.chain.history(model):
        if one.champion == version:
            node = release_node(one)
            node.effects = of_release(sources, one)
            effects.append(node)
    return effects
