"""Dead letters: what was refused, why, from where; and sending those again that are valid by now, each once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer

from feature_repo.use_cases import USE_CASES
from feature_repo.views import skew_ms
from feature_repo.wire import Wire, pack
from schemas.contracts import explain_reason
from schemas.envelope import Headers, check_cloud_event, header
from schemas.errors import ContractError, DefinitionError, LogError
from schemas.topics import DERIVED_MAX_BYTES, SOURCES, dead_letter_topic
from services.ledger import read_topic

__all__ = ["Letter", "Replay", "find_letter", "read_letters", "replay_letters"]

OURS = ("__streams.errors.", "hr_")


@dataclass(frozen=True, slots=True)
class Letter:
    """One refused record. ``id`` is its place in the source: topic/partition/offset."""

    id: str
    source: str
    reason: str
    fact: str
    hint: str
    arrival_ms: int
    key: bytes | None
    value: bytes | None = field(repr=False)
    headers: Headers = field(repr=False)

    def still_refused(self, arrival_ms: int) -> ContractError | None:
        """Why it would be refused if it arrived at ``arrival_ms``; None where it would not."""
        if self.value is None:  # also of a value that was too large to be kept
            return ContractError(self.reason, self.fact, hint=self.hint)
        try:
            check_cloud_event(self.headers, SOURCES[self.source])
            ahead_ms = SOURCES[self.source].decode(self.value).event_time - arrival_ms
        except ContractError as error:
            return error
        if ahead_ms > skew_ms((view for case in USE_CASES for view in case.views), self.source):
            return ContractError("clock-skew", f"event_time is still {ahead_ms} ms ahead", hint=explain_reason("clock-skew"))
        return None


@dataclass
class Replay:
    """``sent`` again, ``before`` in an earlier replay, ``refused`` still: id -> fact."""

    sent: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def read_letters(bootstrap: str, sources: Iterable[str], reason: str | None = None) -> Iterator[Letter]:
    """All dead letters of ``sources``, each source record once, in the order of the topics."""
    seen = set()
    for source in sources:
        for message in read_topic(bootstrap, dead_letter_topic(source)):
            letter = _letter(source, message)
            if letter.id not in seen and reason in (None, letter.reason):
                seen.add(letter.id)
                yield letter


def find_letter(bootstrap: str, sources: Iterable[str], identity: str) -> Letter:
    for letter in read_letters(bootstrap, sources):
        if letter.id == identity:
            return letter
    raise DefinitionError(f"there is no dead letter {identity!r}", hint="`headrace dlq list` shows the ids")


def replay_letters(bootstrap: str, redis_url: str, letters: Iterable[Letter], now_ms: int | None, dry_run: bool) -> Replay:
    """Publish the original bytes to their source again, where the contract takes them now.

    A replayed letter is a new arrival at ``now_ms`` (where the broker stamps arrival, it does); where the stream's clock is not
    known yet (None), that is its first arrival. What was replayed is remembered in the online store, after the broker acknowledged
    it; should that be forgotten, a second copy has no effect (identity is event id and time).
    """
    wire, outcome = Wire(redis_url, 5000), Replay()
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True,
                         "message.max.bytes": DERIVED_MAX_BYTES})
    failed: list[Any] = []
    try:
        for letter in letters:
            arrival_ms = letter.arrival_ms if now_ms is None else now_ms
            error = letter.still_refused(arrival_ms)
            if wire.call("SISMEMBER", _memory(letter.source), letter.id):
                outcome.before.append(letter.id)
            elif error is not None:
                outcome.refused[letter.id] = error.fact
            else:
                outcome.sent.append(letter.id)
                if not dry_run:
                    producer.produce(letter.source, letter.value, letter.key, headers=list(letter.headers), timestamp=arrival_ms,
                                     on_delivery=lambda error, _: failed.append(error) if error else None)
                    producer.poll(0)
        if producer.flush(60) or failed:
            raise LogError(f"not every dead letter was acknowledged: {failed[:1] or 'no answer'}", hint="run the replay again")
        if not dry_run and outcome.sent:
            wire.exchange([pack(("SADD", _memory(identity.split("/", 1)[0]), identity)) for identity in outcome.sent])
    finally:
        wire.close()
    return outcome


def _memory(source: str) -> str:
    return f"replayed:{dead_letter_topic(source)}"


def _letter(source: str, message: Any) -> Letter:
    headers = message.headers() or []

    def text(name: str) -> str:
        return (header(headers, name) or b"").decode("utf-8", "replace")

    place = f"{source}/{text('__streams.errors.partition')}/{text('__streams.errors.offset')}"
    reason = text("hr_reason")
    kept = [(name, value) for name, value in headers if not name.startswith(OURS)]
    return Letter(place, source, reason, text("__streams.errors.message"), text("hr_hint") or explain_reason(reason),
                  int(text("hr_arrival_ms") or 0), message.key(), message.value(), kept)
