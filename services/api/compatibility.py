"""What of a changed API description would break a client of the one before. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["breaking"]

Json = Mapping[str, Any]
LIMITS = (("minimum", 1), ("minLength", 1), ("minItems", 1), ("maximum", -1), ("maxLength", -1), ("maxItems", -1))
"""What may not become stricter of what clients send; -1: stricter is less."""


def breaking(before: Json, now: Json) -> list[str]:
    """One sentence for each break: what is gone, what is asked for in addition, what became stricter, what is told no more."""
    return sorted(set(_paths(before, now)))


def _paths(before: Json, now: Json) -> Iterator[str]:
    for path, methods in before["paths"].items():
        for method, old in methods.items():
            new = now["paths"].get(path, {}).get(method)
            name = f"{method.upper()} {path}"
            if new is None:
                yield f"{name} is gone"
                continue
            yield from _parameters(name, old, new)
            if new.get("x-scope") != old.get("x-scope"):
                yield f"{name} needs another scope"
            yield from _asked(f"{name}: ", _body(before, old), _body(now, new), before, now)
            for status, answer in old["responses"].items():
                other = new["responses"].get(status)
                if status.startswith("2") and other is None:
                    yield f"{name} no longer answers {status}"
                elif other is not None:
                    yield from _told(f"{name} {status}: ", _content(before, answer), _content(now, other), before, now)


def _parameters(name: str, old: Json, new: Json) -> Iterator[str]:
    known = {(one["in"], one["name"]) for one in new.get("parameters", ())}
    had = {(one["in"], one["name"]): one for one in old.get("parameters", ())}
    for place, parameter in had:
        if (place, parameter) not in known:
            yield f"{name} takes no {parameter} any more"
    for one in new.get("parameters", ()):
        if one.get("required") and not had.get((one["in"], one["name"]), {}).get("required"):
            yield f"{name} now needs {one['name']}"


def _asked(at: str, old: Json, new: Json, before: Json, now: Json) -> Iterator[str]:
    """Of a body that clients send: nothing may be needed that was not, nothing refused that was taken."""
    old, new = _resolved(old, before), _resolved(new, now)
    if old.get("type") != new.get("type"):
        yield f"{at}is to be {new.get('type')}, was {old.get('type')}"
    for name in set(new.get("required", ())) - set(old.get("required", ())):
        yield f"{at}{name} is now required"
    for limit, sign in LIMITS:
        if limit in new and (limit not in old or sign * (new[limit] - old[limit]) > 0):
            yield f"{at}{limit} became stricter"
    for name, schema in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            yield f"{at}{name} is no longer taken"
        else:
            yield from _asked(f"{at}{name} ", schema, new["properties"][name], before, now)
    if (items := _items(old, new)) is not None:
        yield from _asked(f"{at}items ", *items, before, now)


def _told(at: str, old: Json, new: Json, before: Json, now: Json) -> Iterator[str]:
    """Of an answer: what was always there stays, with its type."""
    old, new = _resolved(old, before), _resolved(new, now)
    for name, schema in old.get("properties", {}).items():
        other = new.get("properties", {}).get(name)
        if other is None or (name in old.get("required", ()) and name not in new.get("required", ())):
            yield f"{at}{name} is no longer told"
        elif not _types(_resolved(other, now)) <= _types(_resolved(schema, before)):
            yield f"{at}{name} has another type"
        else:
            yield from _told(f"{at}{name} ", schema, other, before, now)
    if (items := _items(old, new)) is not None:
        yield from _told(f"{at}items ", *items, before, now)


def _items(old: Json, new: Json) -> tuple[Json, Json] | None:
    """Of two arrays; None of what is none, or has another schema for each place."""
    items = old.get("items"), new.get("items")
    return items if isinstance(items[0], Mapping) and isinstance(items[1], Mapping) else None  # type: ignore[return-value]


def _types(schema: Json) -> set[str]:
    return {schema["type"]} if "type" in schema else {one["type"] for one in schema.get("anyOf", ()) if "type" in one}


def _body(document: Json, operation: Json) -> Json:
    return _content(document, operation.get("requestBody", {}))


def _content(document: Json, part: Json) -> Json:
    return next((kind.get("schema", {}) for kind in _resolved(part, document).get("content", {}).values()), {})


def _resolved(part: Json, document: Json) -> Json:
    while "$ref" in part:
        found: Any = document
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        part = found
    return part
