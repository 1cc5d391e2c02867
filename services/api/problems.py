"""Errors as problem documents (RFC 9457): what is wrong, with which field, and what to do. Never a value that was sent."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import msgspec

from schemas.errors import BelowFloorError, ContractError, DefinitionError, HeadraceError, LogError, RefusedError, StoreError

__all__ = ["MEDIA_TYPE", "FieldFault", "Problem", "headers_of", "problem_of"]

MEDIA_TYPE = b"application/problem+json"
PLACE = re.compile(r" - at `(\$[^`]*)`$")
NAMED = re.compile(r"field `([^`]*)`")
STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
STATUS_OF_REASON = {"not-json": 400, "no-value": 400, "too-large": 413}


class FieldFault(msgspec.Struct, frozen=True):
    """``pointer`` is a JSON pointer (RFC 6901) into the request's body; empty: the body as a whole."""

    pointer: str
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """``reason`` is a stable word to program by, the last part of ``type``; ``detail`` is for people."""

    type: str
    title: str
    status: int
    reason: str
    detail: str = ""
    hint: str = ""
    errors: tuple[FieldFault, ...] = ()


def problem_of(error: HeadraceError) -> Problem:
    """What is told of ``error``."""
    if isinstance(error, ContractError):
        return _problem(STATUS_OF_REASON.get(error.reason, 422), error.reason, PLACE.sub("", error.fact), error.hint,
                        (FieldFault(_pointer(error.fact), PLACE.sub("", error.fact)),))
    if isinstance(error, RefusedError):
        return _problem(error.status, error.reason, error.fact, error.hint)
    if isinstance(error, BelowFloorError):
        return _problem(404, "below-floor", error.fact, error.hint)
    if isinstance(error, StoreError):
        return _problem(503, "store-unavailable", "the online store does not answer", "try again")
    if isinstance(error, LogError):
        return _problem(503, "log-unavailable", error.fact, error.hint)
    if isinstance(error, DefinitionError):
        return _problem(404, "not-known", error.fact, error.hint)
    return _problem(500, "fault", "this is a fault of the server", "see its log")


def headers_of(problem: Problem, retry_s: int | None = None) -> list[tuple[bytes, bytes]]:
    """Those that say what the body is and, where it is told, when to come back."""
    retry_s = 1 if retry_s is None and problem.status in (429, 503) else retry_s
    found = [(b"content-type", MEDIA_TYPE)]
    if retry_s is not None:
        found.append((b"retry-after", b"%d" % retry_s))
    if problem.status == 401:
        found.append((b"www-authenticate", b'Bearer realm="headrace"'))
    return found


def _problem(status: int, reason: str, detail: str, hint: str, errors: Any = ()) -> Problem:
    return Problem(f"urn:headrace:problem:{reason}", HTTPStatus(status).phrase, status, reason, detail, hint, errors)


def _pointer(fact: str) -> str:
    """``Object missing required field `a` - at `$.events[3]``` -> /events/3/a"""
    place, named = PLACE.search(fact), NAMED.search(fact)
    steps = [name or index for name, index in STEP.findall(place.group(1))] if place else []
    steps += [named.group(1)] if named else []
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
