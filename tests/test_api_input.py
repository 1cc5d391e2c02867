"""Who may do what, how much at once, and that no input breaks the HTTP API or makes it grow."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from services.api.edge import OPEN, SCOPE_OF
from services.api.keys import SCOPES, Scope, key_file, read_keys, revoke_key
from tests.api_world import Api, api_world
from tests.bench.http_load import Job, run_load
from tests.deadline import eventually

GROWTH = 16 << 20
BODIES: dict[str, tuple[str, str, Any]] = {
    "score": ("POST", "/v1/score", {}), "score:batch": ("POST", "/v1/score:batch", {}), "features": ("POST", "/v1/features", {}),
    "predictions": ("GET", f"/v1/predictions/{'0' * 32}", None), "models": ("GET", "/v1/models", None),
    "releases": ("GET", "/v1/releases", None), "events": ("POST", "/v1/events", {}), "outcomes": ("POST", "/v1/outcomes", {})}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_world(tmp_path_factory.mktemp("api-input") / "home", ("api",)) as api:
        yield api


@pytest.fixture(scope="module")
def keys(api: Api) -> dict[Scope, str]:
    made = {scope: api.key_for(scope) for scope in SCOPES}
    eventually(lambda: api.get("/v1/models", key=made["admin"]).status == 200)
    return made


def grown(api: Api, before: int) -> int:
    return memory(api) - before


def memory(api: Api) -> int:
    pid = api.runtime.pid("api")
    assert pid
    return int(psutil.Process(pid).memory_info().rss)


@pytest.mark.parametrize("area", SCOPE_OF)
def test_a_key_opens_what_it_is_for_and_nothing_else(api: Api, keys: dict[Scope, str], area: str) -> None:
    """An empty body is refused later, for what it lacks: who gets so far was let in."""
    method, path, body = BODIES[area]
    for scope, key in keys.items():
        answer = api.ask(method, path, body, key=key)
        if scope in (SCOPE_OF[area], "admin"):
            assert answer.status in (200, 404, 422)
        else:
            assert (answer.status, answer.reason) == (403, "wrong-scope")
    for key in ("", "nonsense", f"hr_{api.key[3:11]}_{'A' * 43}", api.key[:-1], api.key + "A"):
        assert api.ask(method, path, body, key=key).status == 401
    assert api.ask(method, path, body, key="", headers={"x-api-key": keys["admin"]}).status != 401


def test_every_path_needs_a_key_or_is_declared_open(api: Api) -> None:
    for path in api.get("/openapi.json", key="").body["paths"]:
        area = path.removeprefix("/v1").strip("/").split("/")[0]
        assert (area in SCOPE_OF) == path.startswith("/v1/")
        assert (area in OPEN) != path.startswith("/v1/")


def test_a_revoked_key_stops_without_a_restart(api: Api) -> None:
    key = api.key_for("score")
    eventually(lambda: api.get("/v1/models", key=key).status == 200)
    revoke_key(api.home / "api", key[3:11])
    eventually(lambda: api.get("/v1/models", key=key).status == 401)
    assert key[3:11] not in {one.id for one in read_keys(key_file(api.home / "api"))}


def test_a_rate_is_counted_in_events(api: Api) -> None:
    key = api.key_for("score", rate_per_s=0.02)  # one at once, the next in 50 s
    eventually(lambda: api.post("/v1/score", b"", key=key).status != 401)
    other = api.key_for("score", rate_per_s=20)
    eventually(lambda: api.post("/v1/score", b"", key=other).status != 401)
    events = {"events": [api.event() for _ in range(200)]}
    assert api.post("/v1/score:batch", events, key=other).status == 200, "what was begun is not cut off"
    refused = api.post("/v1/score", api.event(), key=other)
    assert (refused.status, refused.reason) == (429, "rate-limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert api.post("/v1/score", api.event()).status == 200, "nobody else waits for that"


@pytest.mark.parametrize(("body", "status"), [
    (b"", 400), (b"{", 400), (b"\xff\xfe", 400), (b"null", 422), (b"[]", 422), (b'"x"', 422), (b"{}", 422), (b"[" * 10_000, 422),
    (b'{"event_id":' + b"[" * 10_000, 422), (b'{"x":' * 10_000, 422), (b"1" * 100_000, 422), (b"NaN", 400),
    (b'{"event_id": "e", "event_time": 1e400, "card_id": "c", "terminal_id": "t", "amount_minor": 1}', 422),
    (b'{"event_id": "e", "event_time": 4102444800000, "card_id": "c", "terminal_id": "t", "amount_minor": 1}', 422),
    (b"x" * ((1 << 20) + 1), 413),
])
@pytest.mark.parametrize("path", ["/v1/score", "/v1/events"])
def test_no_body_breaks_it(api: Api, path: str, body: bytes, status: int) -> None:
    answer = api.post(path, body)
    assert answer.status in (status, 400, 422)
    assert answer.status // 100 == 4
    assert answer.reason


def test_a_body_without_an_end_is_cut_off_and_takes_no_memory(api: Api) -> None:
    """300 MB in chunks, of which no header says how many there are."""
    before = memory(api)
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as line:
        head = f"POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\ntransfer-encoding: chunked\r\n\r\n"
        line.sendall(head.encode())
        chunk, sent = b"10000\r\n" + b"x" * 65_536 + b"\r\n", 0
        try:
            while sent < 4_800:
                line.sendall(chunk)
                sent += 1
        except OSError:
            pass  # it hung up
        assert sent < 400, "long before the end"
    assert grown(api, before) < GROWTH
    assert api.post("/v1/score", api.event()).status == 200


def test_slow_clients_are_hung_up_on_while_others_are_answered(api: Api) -> None:
    before = memory(api)
    head = f"POST /v1/score HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\n"
    starts = [b"", b"POST /v1/sc", head.encode(), f"{head}content-length: 100\r\n\r\n{{".encode()]
    lines = [socket.create_connection(("127.0.0.1", api.port), timeout=30) for _ in range(200)]
    try:
        for number, line in enumerate(lines):
            line.sendall(starts[number % len(starts)])
        began = time.monotonic()
        assert api.post("/v1/score", api.event()).status == 200
        for line in lines:
            while line.recv(65_536):
                pass  # 408 where it was a request already
        assert time.monotonic() - began < 25
    finally:
        for line in lines:
            line.close()
    assert grown(api, before) < GROWTH


def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_a_reason(api: Api) -> None:
    api.post("/v1/score", api.event())
    answer = api.post("/v1/score:batch", {"events": [api.event() for _ in range(256)]}, headers={"headrace-deadline-ms": "1"})
    assert (answer.status, answer.reason) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert api.post("/v1/score", api.event(), headers={"headrace-deadline-ms": "10000"}).status == 200, "the control"
    for wrong in ("soon", "0", "-1", "1000000", ""):
        assert api.post("/v1/score", api.event(), headers={"headrace-deadline-ms": wrong}).reason == "wrong-header"


def test_overload_is_shed_not_queued(api: Api) -> None:
    """More connections than it can serve in the deadline: answers or refusals, none later than the deadline and a bit, no fault."""
    job = Job("127.0.0.1", api.port, "/v1/score:batch", {"authorization": f"Bearer {api.key}", "headrace-deadline-ms": "50"},
              [json.dumps({"events": [api.event() for _ in range(200)]})], 2.0, connections=40, warm_s=0.0, linger_s=60.0)
    seen = run_load(job)
    assert set(seen.statuses) <= {"200", "503", "429"}
    assert seen.statuses["503"] > 0
    eventually(lambda: api.post("/v1/score", api.event()).status == 200)


def test_an_unknown_path_and_method_are_problems_too(api: Api) -> None:
    assert api.get("/v1/nothing").reason == "no-such-path"
    answer = api.ask("DELETE", "/v1/models")
    assert (answer.status, answer.reason, answer.headers["allow"]) == (405, "wrong-method", "GET")
    answer = api.get("/v1/score")
    assert (answer.status, answer.reason, answer.headers["allow"]) == (405, "wrong-method", "POST")
    assert api.get("/v1/models?model=fraud").reason == "unknown-parameter"
    assert api.post("/v1/score?modle=fraud", api.event()).reason == "unknown-parameter"
    assert api.post("/v1/score", b"<x/>", headers={"content-type": "text/xml"}).reason == "wrong-media-type"


def test_personal_data_is_in_no_refusal_log_or_metric(api: Api) -> None:
    secret = "4111111111111111"
    for body in ({**api.event(), "card_id": secret * 20}, {**api.event(), "card_id": secret, "amount_minor": secret}, {"card_id": secret}):
        assert secret not in str(api.post("/v1/score", body))
    assert api.post("/v1/score", api.event(card_id=secret)).status == 200
    assert secret not in api.get("/metrics").body
    assert secret not in "".join(path.read_text(errors="replace") for path in (api.home / "logs").glob("api.log"))


def test_schemathesis_finds_nothing(api: Api) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis (the dev extra has it)")
    from hypothesis import HealthCheck, Phase, given, settings, strategies
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    document = api.get("/openapi.json").body
    for operation in [operation for methods in document["paths"].values() for operation in methods.values()]:
        operation.pop("security", None)  # who may do what is tested above; here everybody may
    schema = schemathesis.openapi.from_dict(document)
    documented = [checks.status_code_conformance, checks.content_type_conformance, checks.response_headers_conformance,
                  checks.response_schema_conformance]
    key = {"authorization": f"Bearer {api.key}"}

    def answered(case: Any, valid: bool) -> Any:
        """The answer to ``case``. A millisecond is a deadline that may be asked for, and 503 with a reason then the right answer to what is
        valid, in the form that is documented; asked again with time enough, as it says, it must be another."""
        answer = case.call(base_url=api.runtime.api, headers=key)
        if not valid or answer.status_code != 503 or answer.json().get("reason") != "overloaded":
            return answer
        case.validate_response(answer, checks=documented)
        patient = {**key, "headrace-deadline-ms": "60000"}
        return eventually(lambda: (again := case.call(base_url=api.runtime.api, headers=patient)).status_code != 503 and again)

    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            if mode.is_negative and not (operation.body or operation.query or operation.path_parameters):
                continue  # nothing can be wrong with what takes nothing
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate],
                      derandomize=True)
            @given(case=strategy, valid=strategies.just(mode.is_positive))
            def check(case: Any, valid: bool) -> None:
                nonlocal tried
                tried += 1
                case.validate_response(answered(case, valid), checks=[not_a_server_error, *documented, checks.negative_data_rejection])

            check()
    assert tried > 150
    assert api.post("/v1/score", api.event()).status == 200


def test_a_pipelined_connection_is_answered_in_order(api: Api) -> None:
    body = json.dumps(api.event()).encode()
    head = f"POST /v1/score HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as line:
        line.sendall((head + body) * 3 + b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        seen = b""
        while b"alive" not in seen:
            seen += line.recv(65_536)
    assert seen.count(b"HTTP/1.1 200") == 4
    assert seen.count(b"prediction_id") == 3
    assert seen.rindex(b"prediction_id") < seen.index(b"alive")
