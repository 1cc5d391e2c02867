"""From an id to the thing that has it, and from the thing to its tree."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import PurePath
from typing import Any

from feature_repo.archive_table import open_archive
from feature_repo.manifest import MANIFEST_FILE
from feature_repo.pairs import prediction_id
from feature_repo.use_cases import USE_CASES, use_cases
from jobs.linked import Found, evaluations_of, events_of
from jobs.past_read import find_answer, find_prediction
from schemas.errors import JobError
from schemas.releases import Release
from schemas.settings import Settings
from schemas.topics import SOURCES
from services.why import causes, effects
from services.why.chronicle import read_chronicle
from services.why.node import KINDS, Node
from services.why.sources import Sources, detection_node, evaluation_node, prediction_node, release_node, request_node
from services.words import iso

__all__ = ["MOST", "why"]

MOST = 5
Make = Callable[[], Node]


def why(settings: Settings, asked: str, at_ms: int | None = None, most: int = MOST) -> tuple[Node, dict[str, Any]]:
    """The tree of what has the id ``asked`` (or ``kind:id``), and where it was read from.

    ``at_ms`` is the event time where a producer used an id twice. Raises JobError where nothing has it, or several things have.
    """
    sources = Sources(settings, read_chronicle(settings), None, {}, most)
    sources.specs = {spec.name: spec for case in use_cases(settings, USE_CASES) for spec in case.models}
    no_archive = ""
    try:
        sources.archive = open_archive(settings)
    except JobError as error:
        no_archive = error.fact
    found = candidates(sources, asked, at_ms)
    if not found:
        raise JobError(f"nothing that is known has the id {asked!r}" + (f" ({no_archive})" if no_archive else ""),
                       hint="`headrace archive` brings what Kafka has; ids are those of events, predictions, evaluations, detections, "
                            "retrains, releases (model@epoch) and versions (model@version)")
    if len(found) > 1:
        raise JobError(f"{asked!r} is {len(found)} things", hint="ask for one of them: " + "; ".join(found))
    node = next(iter(found.values()))()
    return node, {**sources.told.read, "archive_version": sources.archive.version if sources.archive is not None else None}


def candidates(sources: Sources, asked: str, at_ms: int | None) -> dict[str, Make]:
    """What has the id: the question that means it alone -> how its tree is made. What was decided is looked at before the archive."""
    kind, _, name = asked.partition(":")
    kinds: tuple[str, ...] = (kind,) if kind in KINDS else KINDS
    name = name if kind in KINDS else asked
    found: dict[str, Make] = {}
    if "detection" in kinds and name in sources.told.detections:
        found[f"detection:{name}"] = partial(detection, sources, name)
    if "request" in kinds:
        found |= {f"request:{each}": partial(request, sources, each)
                  for each, one in sources.told.requests.items() if name == each or one.episode == f"manual:{name}"}
    if not found or kind in KINDS:
        found |= named_releases(sources, name, kinds)
    if found or sources.archive is None:
        return found
    of_prediction, _, revision = name.rpartition(":")
    if "evaluation" in kinds and revision.isdecimal():
        found |= {f"evaluation:{name}": partial(evaluation, sources, one)
                  for one in evaluations_of(sources.archive, of_prediction)
                  if one.record.evaluation_id == name and one.record.model in sources.specs}
    if not found and "prediction" in kinds and re.fullmatch("[0-9a-f]{32}", name) and (one := predicted(sources, name)) is not None:
        found[f"prediction:{name}"] = partial(prediction, sources, one)
    if not found and "event" in kinds:
        found |= named_events(sources, name, at_ms)
    return found


def named_releases(sources: Sources, name: str, kinds: tuple[str, ...]) -> dict[str, Make]:
    """Releases and versions. An epoch that made the version of the same number live is the release."""
    releases = [each for each in sources.told.releases() if name in (each.release_id, f"{each.model}@{each.epoch}")] \
        if "release" in kinds else []
    found: dict[str, Make] = {f"release:{each.model}@{each.epoch}": partial(release, sources, each) for each in releases}
    model, _, version = name.rpartition("@")
    plain = bool(model and version) and all(PurePath(part).name == part for part in (model, version))
    if "version" in kinds and plain and not any(each.champion == version for each in releases):
        named = any(each.champion == version for each in sources.told.chain.history(model))
        if named or (sources.settings.models / model / version / MANIFEST_FILE).exists():
            found[f"version:{name}"] = partial(of_version, sources, model, version)
    return found


def named_events(sources: Sources, name: str, at_ms: int | None) -> dict[str, Make]:
    """Events that are scored, and others only where there is none of those; outcomes are told with the event they are of."""
    everything = [each for each in events_of(sources.known(), name, SOURCES) if at_ms in (None, each.record.event_time)]
    scored = {spec.service.source for spec in sources.specs.values()}
    found = [each for each in everything if each.topic in scored] or everything[:1]
    return {f"event:{name} --at {each.record.event_time} ({each.topic}, {iso(each.record.event_time)})":
            partial(event, sources, each, everything) for each in found}


def predicted(sources: Sources, name: str) -> Any:
    """The log's prediction of that id, else the newest answer to a request; None where there is neither."""
    for find in (find_prediction, find_answer):
        with suppress(JobError):
            return find(sources.known(), sources.specs.values(), name)
    return None


def event(sources: Sources, found: Found, everything: list[Found]) -> Node:
    node = causes.event_node(found)
    sources.once(node)
    for spec in sources.specs.values():
        if spec.service.source == found.topic:
            one = predicted(sources, prediction_id(spec.name, found.record.event_id, found.record.event_time))
            if one is not None:
                node.effects.append(down(sources, one))
    node.effects += [causes.event_node(each, "outcome") for each in everything
                     if each.topic != found.topic and each.record.event_time == found.record.event_time]
    return node


def down(sources: Sources, one: Any) -> Node:
    node = prediction_node(one.prediction)
    sources.once(node)
    release = sources.told.release_of(one.prediction.model, one.prediction.model_version, one.prediction.arrival_ms,
                                      getattr(one.prediction, "epoch", None))
    node.facts |= {"epoch": release.epoch if release is not None else None}
    node.more = f"headrace why {one.prediction.prediction_id}"
    node.effects = effects.of_prediction(sources, one.spec, one.prediction)
    return node


def prediction(sources: Sources, one: Any) -> Node:
    led = causes.of_prediction(sources, one.spec, one.prediction)
    node = down(sources, one)
    node.causes, node.more = led, f"headrace explain {node.id}{' --answer' if one.event is not None else ''}"
    node.facts |= {"logged": causes.place(one.topic, one.copies[0]), "copies": len(one.copies)}
    return node


def evaluation(sources: Sources, found: Found) -> Node:
    record, spec = found.record, sources.specs[found.record.model]
    node = evaluation_node(record)
    sources.once(node)
    one, above = predicted(sources, record.prediction_id), None
    if one is not None:
        above = prediction_node(one.prediction)
        above.causes = causes.of_prediction(sources, spec, one.prediction)
    node.causes = causes.of_evaluation(sources, spec, record, above)
    node.effects = effects.of_evaluation(sources, spec, record)
    return node


def detection(sources: Sources, name: str) -> Node:
    one = sources.told.detections[name]
    node = detection_node(one)
    sources.once(node)
    node.causes, node.effects = causes.of_detection(sources, one), effects.of_detection(sources, one)
    return node


def request(sources: Sources, name: str) -> Node:
    one = sources.told.requests[name]
    node = request_node(one)
    sources.once(node)
    node.causes, node.effects = causes.of_request(sources, one), effects.of_request(sources, one)
    return node


def release(sources: Sources, one: Release) -> Node:
    node = release_node(one)
    sources.once(node)
    node.causes, node.effects = causes.of_release(sources, one), effects.of_release(sources, one)
    return node


def of_version(sources: Sources, model: str, version: str) -> Node:
    node = sources.version_node(model, version)
    sources.once(node)
    node.causes, node.effects = causes.of_version(sources, node), effects.of_version(sources, model, version)
    return node
