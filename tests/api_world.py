"""An HTTP API on real engines, and a client that says what it was answered, whatever that was."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from schemas.settings import Settings
from services.api.keys import Scope, add_key
from services.runtime.embedded import Runtime
from tests.deadline import eventually
from tests.small_model import promote_small_model

DEFAULTS = {"card_count_1d": 3.0, "card_amount_mean_30d": 20.0, "card_at_terminal_30d": 0.0}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def reason(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        assert self.body["status"] == self.status
        assert self.body["type"].endswith(":" + self.body["reason"])
        return str(self.body["reason"])


@dataclass
class Api:
    """``runtime`` runs the API as a role; ``key`` may do everything."""

    runtime: Runtime
    home: Path
    key: str
    sent: int = 0

    @property
    def port(self) -> int:
        return urlsplit(self.runtime.api).port or 0

    def key_for(self, *scopes: Scope, rate_per_s: float = 20_000.0) -> str:
        return add_key(self.home / "api", scopes, rate_per_s)[1]

    def event(self, **told: Any) -> dict[str, Any]:
        """A transaction of now that was not sent before."""
        self.sent += 1
        return {"event_id": f"w{self.sent}", "event_time": time.time_ns() // 1_000_000, "card_id": f"c{self.sent % 20}",
                "terminal_id": f"t{self.sent % 15}", "amount_minor": 100 + self.sent, **told}

    def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None, headers: dict[str, str] | None = None,
            timeout_s: float = 30.0) -> Answer:
        """``body`` as JSON, or as it is where it is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        token = self.key if key is None else key
        told = {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        try:
            connection.request(method, path, data, told)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        kept = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, kept, json.loads(text) if "json" in kept.get("content-type", "") and text else text.decode())

    def post(self, path: str, body: Any, **told: Any) -> Answer:
        return self.ask("POST", path, body, **told)

    def get(self, path: str, **told: Any) -> Answer:
        return self.ask("GET", path, **told)

    def features(self, **told: Any) -> Any:
        """Asked again where the store could not answer in its time."""
        return eventually(lambda: (answer := self.post("/v1/features", told)).status != 503 and answer.body)

    def served(self) -> tuple[str, int]:
        """(version, epoch) that scores an event now."""
        answer = self.post("/v1/score", self.event()).body
        return answer["model_version"], answer["epoch"]


@contextmanager
def api_world(home: Path, roles: tuple[str, ...] = ("worker", "scorer", "api"), **settings: Any) -> Iterator[Api]:
    """Engines and ``roles`` of their own, with a released model, and so much time that a busy machine refuses nothing."""
    promote_small_model(home / "models", defaults=DEFAULTS)
    with Runtime(Settings(home=home, **{"api_deadline_ms": 10_000, "redis_timeout_ms": 5_000, **settings}), roles=roles) as runtime:
        yield Api(runtime, home, (home / "api" / "admin.key").read_text().strip())
