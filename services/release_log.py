"""Reads and writes the release chain on ``model-releases``. ``headrace`` commands, the runner and scorers share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec
from confluent_kafka import Producer

from schemas.errors import ContractError, LogError
from schemas.releases import RELEASE, RELEASES, Chain, Release
from services.log_tail import LogTail
from services.release_machine import Move, Refusal, next_release

__all__ = ["ReleaseLog"]

TRIES = 20


class ReleaseLog:
    """The chain as far as it was read. Not for two threads at once."""

    def __init__(self, bootstrap: str, timeout_s: float = 30.0) -> None:
        self._bootstrap, self._timeout_s = bootstrap, timeout_s
        self._tail = LogTail(bootstrap, RELEASES, timeout_s)
        self.chain = Chain()

    def catch_up(self) -> Chain:
        """The chain up to the end of the topic as it is now. Raises LogError where the broker does not answer."""
        return self._take(self._tail.read())

    def poll(self) -> Chain:
        """The chain with what has come meanwhile; waits for nothing."""
        return self._take(self._tail.poll())

    def release(self, release_id: str, model: str, champion: str, at_ms: int, why: str, by: str, evidence: str | None = None, *,
                instead_of: str | None = None, paused: bool | None = None) -> Release | None:
        """Make ``champion`` live and return the record that did so, be it of this call or of one before that had the same id.

        ``instead_of``: the version that it was judged against; where another is live by then, or releases are paused, nothing is written,
        and None returned. Without it a person releases, whatever is live when it is written.
        """
        def propose(chain: Chain) -> Release | None:
            live = chain.current(model)
            if instead_of is not None and live is not None and (live.paused or live.champion != instead_of):
                return None
            return chain.following(release_id, model, champion, at_ms, why, by, evidence, paused)

        return self._write(release_id, model, propose)

    def act(self, asked: Move) -> Release | Refusal:
        """Carry ``asked`` out by the rules of the state machine, on whatever is live when it is written. Returns the record that did so, be
        it of a call before that had the same id; the one that is live where nothing would change; or why it is refused."""
        refused: list[Refusal] = []

        def propose(chain: Chain) -> Release | None:
            made = next_release(chain, asked)
            if isinstance(made, Refusal):
                refused.append(made)
                return None
            return made

        made = self._write(asked.release_id, asked.model, propose)
        return refused[-1] if made is None else made

    def _write(self, release_id: str, model: str, propose: Callable[[Chain], Release | None]) -> Release | None:
        """The record of that id, written where it is not there; where another came first, what follows that is proposed anew."""
        for _ in range(TRIES):
            chain = self.catch_up()
            done = next((release for release in chain.history(model) if release.release_id == release_id), None)
            if done is not None:
                return done
            made = propose(chain)
            if made is None or made == chain.current(model):
                return made
            self._publish(made)
        raise LogError(f"{TRIES} times another release of {model} came first", hint="who else releases? see `headrace live --history`")

    def close(self) -> None:
        self._tail.close()

    def _take(self, messages: Iterable[Any]) -> Chain:
        for message in messages:
            with suppress(ContractError):  # not a release: whoever wrote it, it changes nothing
                self.chain.take(message.offset(), RELEASE.decode(message.value()))
        return self.chain

    def _publish(self, release: Release) -> None:
        refused: list[Any] = []
        producer = Producer({"bootstrap.servers": self._bootstrap, "acks": "all", "enable.idempotence": True,
                             "message.timeout.ms": int(self._timeout_s * 1000), "on_delivery": lambda error, _: refused.append(error)})
        producer.produce(RELEASES, msgspec.json.encode(release), release.model.encode(), 0)
        if producer.flush(self._timeout_s) or refused[0] is not None:
            raise LogError(f"broker did not take the release: {refused}", hint="is Kafka up? the same command may be given again")
