"""A client of the HTTP API in one file that needs nothing but Python: copy it, or import it.

>>> with Client("http://127.0.0.1:8080", key) as api:  # doctest: +SKIP
...     prediction = api.score({"event_id": "t-1", "event_time": 1782000000000, "card_id": "c-7", "terminal_id": "t-3",
...                             "amount_minor": 1250})
...     prediction.score, prediction.model_version, prediction.degraded

One connection, one thread. What is safe to repeat is repeated: an event that is scored or published twice has its effect once.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

__all__ = ["ApiError", "Client", "Position", "Prediction"]

Event = Mapping[str, Any]
RETRY_STATUSES = (429, 503)


class ApiError(Exception):
    """A problem that the API told (RFC 9457). ``reason`` is the word to program by, ``fields`` are JSON pointers to what is wrong."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.reason = str(problem.get("reason", "unknown"))
        self.hint = str(problem.get("hint", ""))
        self.fields = [fault["pointer"] for fault in problem.get("errors", ())]
        named = f" ({', '.join(self.fields)})" if any(self.fields) else ""
        super().__init__(f"{status} {self.reason}: {problem.get('detail', '')}{named}")


@dataclass(frozen=True)
class Prediction:
    """``score`` is None before a model was released; ``degraded``: some history was missing. ``explanation``: where it was asked for."""

    prediction_id: str
    event_id: str
    event_time: int
    score: float | None
    threshold: float | None
    alert: bool | None
    degraded: bool
    late: bool
    model: str
    model_version: str | None
    epoch: int | None
    service_hash: str
    fingerprint: str
    explanation: dict[str, Any] | None = None


@dataclass(frozen=True)
class Position:
    """Where an event lies in the log."""

    event_id: str
    topic: str
    partition: int
    offset: int
    repeated: bool = False


class Client:
    """``timeout_s`` is for one answer, ``patience_s`` for all tries of a request together; ``deadline_ms`` is told to the server."""

    def __init__(self, url: str, key: str, timeout_s: float = 10.0, patience_s: float = 10.0, deadline_ms: int | None = None) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        self._patience_s = patience_s
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        if deadline_ms is not None:
            self._headers["headrace-deadline-ms"] = str(deadline_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def score(self, event: Event, model: str | None = None, explain: bool = False) -> Prediction:
        """What an event would be scored with now; it is merged into its entities' histories for that, and published nowhere."""
        path = _path("/v1/score", model=model, explain="true" if explain else None)
        return Prediction(**_known(Prediction, self._ask("POST", path, event)))

    def score_batch(self, events: Iterable[Event], model: str | None = None) -> list[Prediction]:
        """All or none, in order; at most 256."""
        told = self._ask("POST", _path("/v1/score:batch", model=model), {"events": list(events)})
        return [Prediction(**_known(Prediction, one)) for one in told["predictions"]]

    def publish(self, event: Event, source: str | None = None) -> Position:
        """Publish an event; it is in the log, on all replicas, when this returns."""
        return Position(**_known(Position, self._ask("POST", _path("/v1/events", source=source), event)))

    def publish_outcome(self, outcome: Event, source: str | None = None) -> Position:
        return Position(**_known(Position, self._ask("POST", _path("/v1/outcomes", source=source), outcome)))

    def features(self, entities: Mapping[str, str], at_ms: int | None = None, model: str | None = None) -> dict[str, float | None]:
        """By feature name."""
        asked = {"entities": dict(entities), "at_ms": at_ms}
        views = self._ask("POST", _path("/v1/features", model=model), asked)["views"]
        return {name: value for view in views for name, value in view["values"].items()}

    def prediction(self, prediction_id: str, model: str | None = None) -> dict[str, Any]:
        """The whole record, with the features that it was made from."""
        told = self._ask("GET", _path(f"/v1/predictions/{quote(prediction_id, safe='')}", model=model))
        return dict(told["prediction"])

    def models(self) -> list[dict[str, Any]]:
        return list(self._ask("GET", "/v1/models")["models"])

    def releases(self, model: str | None = None) -> list[dict[str, Any]]:
        """Newest first."""
        return list(self._ask("GET", _path("/v1/releases", model=model))["releases"])

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data, give_up = None if body is None else json.dumps(body).encode(), time.monotonic() + self._patience_s
        while True:
            try:
                self._connection.request(method, path, data, self._headers)
                response = self._connection.getresponse()
                status, text = response.status, response.read()
                wait_s = float(response.headers.get("retry-after", 1))
            except (http.client.HTTPException, ConnectionError):
                self._connection.close()  # the server ended it, perhaps to make place for its successor
                status, text, wait_s = 0, b"", 0.1
            if 200 <= status < 300:
                return json.loads(text)
            if (status and status not in RETRY_STATUSES) or time.monotonic() + wait_s > give_up:
                raise ApiError(status, _problem(text))
            time.sleep(wait_s)


def _path(path: str, **query: str | None) -> str:
    told = urlencode({name: value for name, value in query.items() if value is not None})
    return f"{path}?{told}" if told else path


def _problem(text: bytes) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {"reason": "no-answer", "detail": "the server ended the connection, or is none of ours"}


def _known(kind: type[Prediction] | type[Position], told: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a newer server adds are passed over."""
    return {field.name: told[field.name] for field in fields(kind) if field.name in told}
