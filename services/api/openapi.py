"""The API's description (OpenAPI 3.1): FastAPI's of its routes, with bodies and problems as they are declared, and the bare routes.

``python -m services.api.openapi docs/openapi.json`` writes that of the default settings, unless it breaks what the file promised.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from msgspec import Meta
from pydantic import SecretStr

from feature_repo.models import Outcomes
from feature_repo.use_cases import models
from schemas.settings import Settings, read_settings
from schemas.topics import SOURCES, sources
from services.api.compatibility import breaking
from services.api.edge import DEADLINE, SCOPE_OF
from services.api.ingest import Position
from services.api.lookups import FeaturesAsked, FeaturesTold, ModelsTold, PredictionTold, ReleasesTold
from services.api.problems import Problem
from services.api.scoring import BATCH_MOST, Answer, Answers

__all__ = ["declared", "describe", "document"]

TEMPLATE = "#/components/schemas/{name}"
ANSWERS: Mapping[str, Any] = {
    "/v1/score": Answer, "/v1/score:batch": Answers, "/v1/features": FeaturesTold, "/v1/predictions/{prediction_id}": PredictionTold,
    "/v1/models": ModelsTold, "/v1/releases": ReleasesTold, "/v1/events": Position, "/v1/outcomes": Position,
}
PROBLEMS = {"400": "not JSON", "401": "no key, or a wrong one", "403": "the key is not for this", "404": "there is no such thing",
            "408": "the body came too slowly", "409": "the id was used for another event", "413": "the body is too large",
            "415": "the body is no JSON", "422": "a field is missing or wrong", "429": "too many, or none can be logged; see Retry-After",
            "503": "overloaded, starting, or an engine does not answer; see Retry-After"}
EXPLAIN = {"name": "explain", "in": "query", "required": False, "schema": {"type": "boolean"},
           "description": "with the contributions of all features, and the reasons, in `explanation`"}
VERSIONS = {
    "headrace-model": "model@version that scored", "headrace-epoch": "which release of it, or none",
    "headrace-service": "hash of the feature service", "headrace-fingerprint": "stands for all events that were seen",
    "headrace-degraded": "true where history was missing"}


def describe(app: FastAPI, settings: Settings) -> None:
    """Let ``app`` tell ``document``."""
    told: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not told:
            told.append(document(app, settings))
        return told[0]

    app.openapi = openapi  # type: ignore[method-assign]


def document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The whole description."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes,
                        description="Scores, features and ingest of headrace. Errors are problem documents (RFC 9457).")
    asked = _asked(settings)
    kinds = list(dict.fromkeys([*_records(asked), FeaturesAsked, *ANSWERS.values(), Problem]))
    _, components = msgspec.json.schema_components(kinds, ref_template=TEMPLATE)
    paths = found["paths"]
    paths |= {"/v1/score": {"post": _bare("score", "Score one event", EXPLAIN)},
              "/v1/score:batch": {"post": _bare("score_batch", f"Score up to {BATCH_MOST} events, all or none")}}
    for path, methods in paths.items():
        for operation in methods.values():
            if path.startswith("/v1/"):
                _complete(path, operation, asked)
    components["PredictionTold"]["properties"]["prediction"] = {"type": "object"}
    problem = {"application/problem+json": {"schema": {"$ref": TEMPLATE.format(name="Problem")}}}
    responses = {status: {"description": text, "content": problem} for status, text in PROBLEMS.items()}
    found["components"] = {"schemas": components, "responses": responses, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _asked(settings: Settings) -> dict[str, list[type[msgspec.Struct]]]:
    """Which records a path takes: those of the models' sources, of all sources that are no outcomes, of outcomes."""
    specs = models(settings)
    outcomes = [spec.labels.topic for spec in specs if isinstance(spec.labels, Outcomes)]
    scored = [SOURCES[spec.service.source].record for spec in specs]
    return {"/v1/score": scored, "/v1/score:batch": scored, "/v1/outcomes": [SOURCES[name].record for name in outcomes],
            "/v1/events": [SOURCES[name].record for name in sources(settings) if name not in outcomes], "/v1/features": [FeaturesAsked]}


def _records(asked: Mapping[str, Sequence[type[msgspec.Struct]]]) -> list[type[msgspec.Struct]]:
    return [record for records in asked.values() for record in records]


def _complete(path: str, operation: dict[str, Any], asked: Mapping[str, Sequence[type[msgspec.Struct]]]) -> None:
    area = path[4:].split("/", 1)[0]
    operation["security"] = [{"key": []}]
    operation["x-scope"] = SCOPE_OF[area]
    operation.pop("x-takes", None)
    if path in asked:
        bodies: list[dict[str, Any]] = [{"$ref": TEMPLATE.format(name=record.__name__)} for record in dict.fromkeys(asked[path])]
        body: dict[str, Any] = bodies[0] if len(bodies) == 1 else {"oneOf": bodies}
        if path == "/v1/score:batch":
            body = {"type": "object", "properties": {"events": {"type": "array", "items": body, "minItems": 1, "maxItems": BATCH_MOST}},
                    "required": ["events"], "additionalProperties": False}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    good = "202" if path in ("/v1/events", "/v1/outcomes") else "200"
    answer: dict[str, Any] = {"description": "done", "content": {"application/json": {"schema": {
        "$ref": TEMPLATE.format(name=ANSWERS[path].__name__)}}}}
    if area.startswith("score"):
        answer["headers"] = {name: {"description": text, "required": True, "schema": {"type": "string"}} for name, text in VERSIONS.items()}
    operation["responses"] = {good: answer, **{status: {"$ref": f"#/components/responses/{status}"} for status in PROBLEMS}}


def _bare(name: str, summary: str, *more: dict[str, Any]) -> dict[str, Any]:
    whole = msgspec.json.schema(Annotated[int, Meta(ge=1, le=999_999)])
    return {"tags": ["score"], "summary": summary, "operationId": name, "parameters": [
        {"name": "model", "in": "query", "required": False, "schema": {"type": "string"}, "description": "default: the first model"},
        {"name": DEADLINE.decode(), "in": "header", "required": False, "schema": whole, "description": "after how long an answer is of no "
         "use; at most what is set"}, *more]}


def declared() -> dict[str, Any]:
    """That of the default settings."""
    from services.api.application import Application

    settings = read_settings(kafka="localhost:1", redis=SecretStr("redis://localhost:1"), use_cases=("fraud",))
    return document(Application(settings).fastapi, settings)


def main() -> int:
    """0 when the file was written; 3 where what it says now would break clients of what it said."""
    parser = argparse.ArgumentParser(prog="python -m services.api.openapi", description=main.__doc__)
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args().file
    now = declared()
    if file.exists() and (breaks := breaking(json.loads(file.read_text()), now)):
        print("\n".join(breaks), file=sys.stderr)
        return 3
    file.write_text(json.dumps(now, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
