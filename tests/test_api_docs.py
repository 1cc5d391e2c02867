"""What is told of the HTTP API is true: its description is the committed one and breaks nobody, and the page's examples run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ContractError
from schemas.fraud import TRANSACTION
from services.api.compatibility import breaking
from services.api.openapi import declared
from services.api.problems import problem_of
from tests.api_world import Api, api_world
from tests.deadline import eventually

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text()
PUBLISHED = json.loads((ROOT / "docs" / "openapi.json").read_text())
EXAMPLES = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_world(tmp_path_factory.mktemp("api-docs") / "home", ("api",)) as api:
        yield api


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_the_page_runs(api: Api, number: int) -> None:
    def asked() -> Any:
        """None while the store stands still: then the page says to ask again."""
        done = subprocess.run(["bash", "-ec", EXAMPLES[number]], env={**os.environ, "URL": api.runtime.api, "KEY": api.key},
                              capture_output=True, text=True, check=False)
        return None if "urn:headrace:problem:store-unavailable" in done.stdout else done

    done = eventually(asked)
    assert done.returncode == 0, done.stdout + done.stderr
    if "12.50" in EXAMPLES[number]:
        assert json.loads(done.stdout) == json.loads(next(iter(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))))
    else:
        assert "urn:headrace:problem" not in done.stdout


def test_an_example_that_is_wrong_fails(api: Api) -> None:
    """The control of the one above."""
    done = subprocess.run(["bash", "-ec", EXAMPLES[0]], env={**os.environ, "URL": api.runtime.api, "KEY": "no"},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 22


def test_the_committed_description_is_that_of_the_code_and_breaks_nobody() -> None:
    now = declared()
    assert breaking(PUBLISHED, now) == []
    assert now == PUBLISHED, "python -m services.api.openapi docs/openapi.json"


def gone(document: Any) -> None:
    del document["paths"]["/v1/models"]


def needed(document: Any) -> None:
    document["components"]["schemas"]["Transaction"]["properties"]["shop"] = {"type": "string"}
    document["components"]["schemas"]["Transaction"]["required"].append("shop")


def stricter(document: Any) -> None:
    document["components"]["schemas"]["Transaction"]["properties"]["event_id"]["maxLength"] = 64


def untold(document: Any) -> None:
    del document["components"]["schemas"]["Answer"]["properties"]["fingerprint"]


def nested(document: Any) -> None:
    document["components"]["schemas"]["VersionTold"]["properties"]["threshold"]["type"] = "string"


def scoped(document: Any) -> None:
    document["paths"]["/v1/models"]["get"]["x-scope"] = "admin"


def parameter(document: Any) -> None:
    document["paths"]["/v1/models"]["get"].setdefault("parameters", []).append({"in": "query", "name": "team", "required": True})


@pytest.mark.parametrize(("change", "told"), [
    (gone, "GET /v1/models is gone"), (needed, "POST /v1/score: shop is now required"),
    (stricter, "POST /v1/score:batch: events items event_id maxLength became stricter"),
    (untold, "POST /v1/score:batch 200: predictions items fingerprint is no longer told"),
    (nested, "GET /v1/models 200: models items versions items threshold has another type"),
    (scoped, "GET /v1/models needs another scope"), (parameter, "GET /v1/models now needs team"),
])
def test_a_change_that_breaks_a_client_is_named(change: Callable[[Any], None], told: str) -> None:
    changed = deepcopy(PUBLISHED)
    change(changed)
    assert told in breaking(PUBLISHED, changed)


def test_what_is_added_breaks_nobody() -> None:
    changed = deepcopy(PUBLISHED)
    changed["components"]["schemas"]["Answer"]["properties"]["reasons"] = {"type": "array", "items": {"type": "string"}}
    changed["components"]["schemas"]["Transaction"]["properties"]["channel"] = {"type": "string"}
    changed["components"]["schemas"]["Transaction"]["properties"]["event_id"]["maxLength"] = 256
    changed["paths"]["/v1/new"] = {"get": {"responses": {}}}
    assert breaking(PUBLISHED, changed) == []


@pytest.mark.parametrize(("value", "status", "pointer"), [
    ({"amount_minor": "x"}, 422, "/amount_minor"), ({"amount_minor": -1}, 422, "/amount_minor"), ({"card_id": ""}, 422, "/card_id"),
    ({"shop": 1}, 422, "/shop"), ({"card_id": None}, 422, "/card_id"), ({"event_time": 1.5}, 422, "/event_time"),
])
def test_a_problem_names_the_field(value: Any, status: int, pointer: str) -> None:
    event = {"event_id": "e", "event_time": 1, "card_id": "c", "terminal_id": "t", "amount_minor": 1, **value}
    with pytest.raises(ContractError) as caught:
        TRANSACTION.decode(json.dumps(event).encode())
    problem = problem_of(caught.value)
    assert (problem.status, [fault.pointer for fault in problem.errors]) == (status, [pointer])
