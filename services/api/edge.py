"""What every request passes first: its path's scope, its key, its rate, its size, its deadline; what fails is answered as a problem.

The two routes that must be fast are answered here, as bare ASGI; all others go on to FastAPI. Bytes are counted as they come, whatever
a header said of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from schemas.contracts import MAX_VALUE_BYTES
from schemas.errors import HeadraceError, RefusedError
from services.api.connections import WHOLE
from services.api.keys import Key, KeyRing, Scope
from services.api.metrics import Metrics
from services.api.problems import headers_of, problem_of
from services.api.scoring import Reply, ScoreRoutes

__all__ = ["DEADLINE", "SCOPE_OF", "Edge"]

log = logging.getLogger("api")
SCOPE_OF: Mapping[str, Scope] = {
    "score": "score", "score:batch": "score", "features": "score", "predictions": "score", "models": "score", "releases": "score",
    "events": "ingest", "outcomes": "ingest",
}
"""What a key must be for, by the first part of the path below /v1/. All else is open: liveness, metrics and the API's description."""
OPEN = frozenset({"livez", "readyz", "startupz", "metrics", "version", "openapi.json"})
DEADLINE = b"headrace-deadline-ms"
"""Header with which a client asks for less time than is set."""
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("score:batch", "features", "predictions", "releases"), ("model",)),
    "score": ("model", "explain"),
    **dict.fromkeys(("events", "outcomes"), ("source",))}
HEARD_OUT_BYTES = 8 << 20
"""So much of a body that is too large is read and dropped before it is answered: hung up on, a client would not see the answer."""
BODY_S = 10.0
SLOW_S = 30.0
HOT = ("/v1/score", "/v1/score:batch")
CLOSE = ((b"connection", b"close"),)
ENCODE = msgspec.json.Encoder().encode
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Edge:
    """ASGI middleware. ``routes`` is asked for at the first request: it is made when the loop runs."""

    def __init__(self, app: Any, routes: Callable[[], ScoreRoutes], keys: KeyRing, metrics: Metrics, deadline_s: float) -> None:
        self._app, self._routes, self._keys, self._metrics, self._deadline_s = app, routes, keys, metrics, deadline_s
        self.draining = False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, path = time.monotonic(), scope["path"]
        area = path[4:].split("/", 1)[0] if path.startswith("/v1/") else ""
        status = 500
        try:
            reply = await self._reply(scope, receive, send, area, began)
            status = reply.status
            if reply.body is not None:
                await self._send(send, reply, scope["method"])
        finally:
            self._metrics.request(_label(area, path), status, time.monotonic() - began)

    async def _reply(self, scope: Any, receive: Receive, send: Send, area: str, began: float) -> Reply:
        """The answer; without a body where the app has sent it."""
        path = scope["path"]
        try:
            headers = dict(scope["headers"])
            key = self._admit(area, headers) if area in SCOPE_OF else None
            if scope["query_string"]:
                _check_query(area, scope["query_string"])
            if path in HOT:
                return await self._score(scope, headers, receive, key, began)
            return await self._pass_on(scope, headers, receive, send)
        except HeadraceError as error:
            problem = problem_of(error)
            return Reply(problem.status, [*headers_of(problem, getattr(error, "retry_s", None)), *_allow(error)], ENCODE(problem))
        except Exception:
            log.exception("a request failed path=%s", _label(area, path))
            problem = problem_of(HeadraceError(""))
            return Reply(500, headers_of(problem), ENCODE(problem))

    async def _send(self, send: Send, reply: Reply, method: str) -> None:
        assert reply.body is not None
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body)), *(CLOSE if self.draining else ())]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else reply.body})

    def _admit(self, area: str, headers: Mapping[bytes, bytes]) -> Key:
        told = headers.get(b"authorization", b"")
        token = told[7:].strip() if told[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        key = self._keys.find(token)
        if key is None:
            raise RefusedError(401, "no-key" if not token else "wrong-key", "this needs an API key",
                               hint="send Authorization: Bearer <key>; the first key lies in api/admin.key of HEADRACE_HOME")
        if not key.may(SCOPE_OF[area]):
            raise RefusedError(403, "wrong-scope", f"key {key.id} is not for {SCOPE_OF[area]}",
                               hint="`headrace api-keys add` makes one that is")
        if (wait_s := self._keys.take(key)) > 0:
            raise RefusedError(429, "rate-limited", f"key {key.id} may send {key.rate_per_s:g} events a second",
                               hint="send fewer, or ask for more", retry_s=max(1, int(wait_s + 0.999)))
        return key

    async def _score(self, scope: Any, headers: Mapping[bytes, bytes], receive: Receive, key: Key | None, began: float) -> Reply:
        if scope["method"] != "POST":
            raise RefusedError(405, "wrong-method", f"{scope['method']} is not for this path", hint="use POST")
        _check_type(headers)
        body = await _read(scope, headers, receive)
        deadline = began + self._seconds(headers)
        if scope["path"] == "/v1/score":
            return await self._routes().score(scope["query_string"], body, deadline)
        assert key is not None
        return await self._routes().score_batch(scope["query_string"], body, deadline, lambda n: self._keys.take(key, n - 1))

    def _seconds(self, headers: Mapping[bytes, bytes]) -> float:
        asked = headers.get(DEADLINE)
        if asked is None:
            return self._deadline_s
        if not (asked.isascii() and asked.isdigit() and len(asked) <= 6 and int(asked) > 0):
            raise RefusedError(400, "wrong-header", f"{DEADLINE.decode()} is no whole number of milliseconds from 1 to 999999")
        return min(int(asked) / 1000, self._deadline_s)

    async def _pass_on(self, scope: Any, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> Reply:
        """Have the app answer; what is returned says with which status."""
        body = await _read(scope, headers, receive)
        given = [{"type": "http.request", "body": body, "more_body": False}]
        told = 500

        async def read() -> Any:
            return given.pop() if given else await receive()

        async def answer(message: Any) -> None:
            nonlocal told
            if message["type"] == "http.response.start":
                told = message["status"]
                if self.draining:
                    message["headers"] = [*message["headers"], *CLOSE]
            await send(message)

        try:
            async with asyncio.timeout(SLOW_S):
                await self._app(scope, read, answer)
        except TimeoutError as error:
            raise RefusedError(503, "too-slow", f"this took longer than {SLOW_S:g} s") from error
        return Reply(told, [], None)


def _label(area: str, path: str) -> str:
    """What is counted of a path: as many as there are of ours, whatever is asked for."""
    name = area or path[1:]
    return name if name in SCOPE_OF or name in OPEN else "unknown"


async def _read(scope: Any, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
    """The body. Raises RefusedError where it is too large or comes too slowly."""
    told = headers.get(b"content-length", b"0")
    if told.isdigit() and int(told[:20]) > HEARD_OUT_BYTES:
        raise _too_large()
    try:
        if scope.get("state", {}).get(WHOLE):
            body, size = await _all(receive)
        else:
            async with asyncio.timeout(BODY_S):
                body, size = await _all(receive)
    except TimeoutError as error:
        raise RefusedError(408, "body-too-slow", f"the body was not there after {BODY_S:g} s") from error
    if size > MAX_VALUE_BYTES:
        raise _too_large()
    return body


async def _all(receive: Receive) -> tuple[bytes, int]:
    """The body and its size; of one that is too large only the size, and no more than is heard out."""
    body, size, more = bytearray(), 0, True
    while more and size <= HEARD_OUT_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if size <= MAX_VALUE_BYTES:
            body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body), size


def _check_query(area: str, query: bytes) -> None:
    """A name that is misspelt would else be passed over in silence."""
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in PARAMETERS.get(area, ()):
            raise RefusedError(422, "unknown-parameter", "this path has no such parameter",
                               hint=f"there is {', '.join(PARAMETERS.get(area, ())) or 'none'}")


def _check_type(headers: Mapping[bytes, bytes]) -> None:
    told = headers.get(b"content-type", b"application/json").split(b";", 1)[0].strip().lower()
    if told != b"application/json":
        raise RefusedError(415, "wrong-media-type", "the body is to be application/json", hint="send one JSON object")


def _too_large() -> RefusedError:
    return RefusedError(413, "too-large", f"the body has more than {MAX_VALUE_BYTES} bytes", hint="send less at once")


def _allow(error: HeadraceError) -> list[tuple[bytes, bytes]]:
    if not isinstance(error, RefusedError):
        return []
    return [*(CLOSE if error.status in (408, 413) else ()), *([(b"allow", b"POST")] if error.status == 405 else [])]
