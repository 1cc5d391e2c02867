"""Record batches for the broker, each built in one piece: aiokafka's C builder with its producer, which speaks to the broker only while
somebody waits for it, in the thread that waits.

confluent-kafka takes 2 us for the ``produce`` call of one record and its threads as much again, and its ``produce_batch`` has no headers
(librdkafka issue 5559); this takes half. docs/decisions/0029-the-worker-builds-its-batches.md has the rest.

aiokafka compresses with lz4 at level 9, which takes longer than everything else together. ``default_records.lz4_encode`` is a private
name: tests/test_batches.py tells when it changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.codec import lz4_encode
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record._crecords import default_records

from schemas.envelope import Headers
from schemas.errors import LogError

__all__ = ["Batches"]

BATCH_BYTES = 1 << 20
"""Before compression; one record may be more."""
HELD_BYTES = 64 << 20
LZ4 = 3
LOOK_EVERY_S, AGAIN_AFTER_S = 0.5, 0.2


class Batches:
    """Idempotent, acknowledged by all replicas, tried again for ever; in order within a partition, for one batch of it is under way.

    ``stopping`` is asked while waiting: a worker that is told to stop does not wait for a dead broker. For one thread.
    """

    def __init__(self, bootstrap: str, stopping: Callable[[], bool]) -> None:
        default_records.lz4_encode = partial(lz4_encode, level=1)
        self._bootstrap, self._stopping = bootstrap, stopping
        self._loop: asyncio.AbstractEventLoop | None = None
        self._producer: AIOKafkaProducer | None = None
        self._filled: dict[tuple[str, int], list[BatchBuilder]] = {}
        self._held = 0

    def add(self, topic: str, partition: int, key: bytes | None, value: bytes | None, at_ms: int, headers: Headers) -> None:
        """Queue one record."""
        self.add_all(topic, partition, ((key, value, at_ms, headers),))

    def add_all(self, topic: str, partition: int, records: Iterable[tuple[bytes | None, bytes | None, int, Headers]]) -> None:
        """Queue records: key, value, time and headers of each."""
        append = self._begun(topic, partition).append
        for key, value, at_ms, headers in records:
            if append(timestamp=at_ms, key=key, value=value, headers=headers) is None:
                append = self._begun(topic, partition).append
                append(timestamp=at_ms, key=key, value=value, headers=headers)

    def _begun(self, topic: str, partition: int) -> BatchBuilder:
        """The last batch of a partition if there is room, else a new one."""
        batches = self._filled.setdefault((topic, partition), [])
        if batches and not batches[-1].closed():
            return batches[-1]
        self._held += batches[-1].size() if batches else 0
        if self._held > HELD_BYTES:
            self.wait()
            batches = self._filled.setdefault((topic, partition), [])
        batches.append(BatchBuilder(BATCH_BYTES, LZ4))
        return batches[-1]

    def wait(self) -> None:
        """Return when all that was added is acknowledged. LogError when something was refused or ``stopping``; the rest is given up."""
        filled, self._filled, self._held = self._filled, {}, 0
        if not filled:
            return
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(lambda *_: None)  # errors are raised; else it tells of all that ends with the process
        try:
            self._loop.run_until_complete(self._unless_stopping(self._send_all(filled)))
        except (KafkaError, LogError) as error:
            self._loop = self._producer = None  # what is still under way there must not come after what is added from now on
            if isinstance(error, LogError):
                raise
            raise LogError(f"broker refused a record: {error!r}", hint="see the broker's log; topics come from the catalogue") from error

    async def _unless_stopping(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(sending)
        while not (await asyncio.wait((task,), timeout=LOOK_EVERY_S))[0]:
            if self._stopping():
                task.cancel()
                await asyncio.wait((task,))
                raise LogError("stopped while the broker had not acknowledged everything", hint="it is published again on restart")
        task.result()

    async def _send_all(self, filled: dict[tuple[str, int], list[BatchBuilder]]) -> None:
        producer = self._producer = self._producer or await self._connect()
        await asyncio.gather(*(_send(producer, *place, batches) for place, batches in filled.items()))

    async def _connect(self) -> AIOKafkaProducer:
        while True:
            producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, acks="all", enable_idempotence=True, compression_type="lz4")
            try:
                await producer.start()
                return producer
            except KafkaConnectionError:
                await asyncio.sleep(AGAIN_AFTER_S)


async def _send(producer: AIOKafkaProducer, topic: str, partition: int, batches: Sequence[BatchBuilder]) -> None:
    for batch in batches:
        await (await producer.send_batch(batch, topic, partition=partition))
