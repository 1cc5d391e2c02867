"""A Faust transport that delivers one event for the chunks that one fetch brought of a topic's partitions.

A stock Faust agent costs 70-80 us an event, nearly all of it bookkeeping per message. For the topics in ``chunk_topics`` the message's
value is a tuple of ``Chunk``: those of several partitions where they are small, else of one, of at most ``CHUNK_MAX`` records. Its
partition and offset are those of the first chunk's end and mean nothing: what is committed is what the agent says is ``done``. Faust
acknowledges a chunk that was passed over all the same, and its gap logic takes re-read offsets for done. Groups, rebalances and the
command line stay stock.

A chunk that aiokafka's thread had before a seek may still come with the new epoch: epochs spare work, they promise nothing.
``streams.applier`` looks at offsets and asks again.

This touches private names of faust-streaming 0.15 (``_wait_next_records``, ``_buffered_partitions``, ``_read_offset``, ``_acked``,
``_new_offset``, ``_committed_offset``) and of aiokafka's fetcher: the lock pins both, and tests/test_faults.py kills workers to show that
nothing is lost. faust-streaming issue 596 is why ``perform_seek`` stops the flow.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from aiokafka.consumer import consumer, fetcher
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers.aiokafka import Consumer, Transport
from faust.types import TP, ConsumerMessage

from streams import header_names

__all__ = ["CHUNK_MAX", "SCHEME", "Chunk", "ChunkConsumer", "ChunkTransport", "PacedFetcher"]

CHUNK_MAX = 4000
"""Each chunk waits twice, for Redis and for the broker. 2,000 gave 73,000 events/s; this, with fewer collections, 82,000."""
TOGETHER_MAX = 1000
"""Records of several partitions in one message: of a few, most of what they cost is spent once a message; of many, lanes take turns."""
SCHEME = "chunkkafka"
TAKEN_WITHIN_S = 1.0


message_type: Any = ConsumerMessage


class Chunk(NamedTuple):
    """Records of one partition in offset order; ``epoch`` counts the seeks of its partition before it was fetched."""

    tp: TP
    records: Sequence[Any]
    epoch: int


class PacedFetcher(fetcher.Fetcher):  # type: ignore[misc]
    """While events come, the broker answers as ``busy`` says: after so many ms, or with so many bytes. When the last answer was empty, as
    ``idle`` says: whoever sleeps does not ask two hundred times a second, and is woken at once where one byte is enough.

    aiokafka has one fetch under way per broker. One that leaves out partitions, for their records are still here, holds up all
    others for as long as it may wait: that is never the idle one.
    """

    busy: tuple[int, int]
    idle: tuple[int, int]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._brought = False
        super().__init__(*arguments, **options)

    def _get_actions_per_node(self, assignment: Any) -> Any:
        self._fetch_max_wait_ms, self._fetch_min_bytes = self.busy if self._brought or self._records else self.idle
        return super()._get_actions_per_node(assignment)

    async def _proc_fetch_request(self, assignment: Any, node_id: Any, request: Any) -> Any:
        self._brought = await super()._proc_fetch_request(assignment, node_id, request)
        return self._brought


class ChunkConsumer(Consumer):
    chunk_topics: frozenset[str] = frozenset()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recoveries = 0
        self._seeks: Counter[TP] = Counter()
        self._done: dict[TP, int] = {}
        self._untaken: set[int] = set()
        self._all_taken = asyncio.Event()

    def epoch(self, tp: TP) -> int:
        """How often reading of ``tp`` was moved; a chunk of an earlier epoch must not be delivered."""
        return self._recoveries + self._seeks[tp]

    def committed(self, tp: TP) -> int:
        """Everything of ``tp`` before this offset is done, by this worker or by one before it."""
        return self._committed_offset[tp] or 0

    def taken(self, chunks: Sequence[Chunk]) -> None:
        """An agent has begun with ``chunks``, the value of one message."""
        self._untaken.discard(id(chunks))
        if not self._untaken:
            self._all_taken.set()

    def done(self, tp: TP, offset: int) -> None:
        """Everything of ``tp`` before ``offset`` is done and may be committed."""
        self._done[tp] = max(offset, self._done.get(tp, 0))
        self._acked.setdefault(tp, [])  # Faust asks for new offsets of these

    def _new_offset(self, tp: TP) -> Any:
        if tp.topic not in self.chunk_topics:
            return super()._new_offset(tp)
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return self._done.get(tp)

    async def perform_seek(self) -> None:
        # Faust resumes partitions before it clears its queues; what is read in between would be dropped and later committed past.
        self.stop_flow()
        self._done.clear()
        try:
            await super().perform_seek()
        finally:
            self._recoveries += 1

    async def seek(self, partition: TP, offset: int) -> None:
        self._seeks[partition] += 1
        # Faust's own would change aiokafka's state from this thread, in the middle of a fetch: now and then a KeyError there.
        await self.seek_wait({partition: offset})

    async def _wait_until_taken(self) -> None:
        """Fetch again when the last fetch is being worked on: what waits at the broker meanwhile comes as one chunk, whereas a queue
        of small ones would cost a round trip each. A chunk that Faust passed over is never taken; so there is an end to waiting."""
        if self._untaken:
            self._all_taken.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_taken.wait(), TAKEN_WITHIN_S)
            self._untaken.clear()

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        await self._wait_until_taken()
        records, active = await self._wait_next_records(timeout)
        generation, epochs = self.app.consumer_generation_id, {tp: self.epoch(tp) for tp in records or ()}
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            await self.perform_seek()
            return

        def stale(tp: TP) -> bool:
            return not self.flow_active or self.app.consumer_generation_id != generation or self.epoch(tp) != epochs[tp]

        def wanted(tp: TP) -> bool:
            return active is None or tp in active or tp in self._buffered_partitions

        single = {tp: batch for tp, batch in records.items() if tp.topic not in self.chunk_topics}
        for chunks in _rounds({tp: batch for tp, batch in records.items() if tp not in single}, epochs):
            value = tuple(chunk for chunk in chunks if not stale(chunk.tp) and wanted(chunk.tp))
            if not value:
                continue
            for tp, _, _ in value:
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                self._read_offset[tp] = None  # Faust would drop what a seek makes it read again, and keep a list of gaps
            tp, last = value[0].tp, value[0].records[-1]
            self._untaken.add(id(value))
            yield tp, message_type(
                tp.topic, tp.partition, last.offset, (last.timestamp or 0) / 1000.0, last.timestamp_type, None, None,
                value, None, 0, 0, tp, generation_id=generation,
            )
        for tp, record in self.scheduler.iterate(single):
            if not stale(tp) and wanted(tp):
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                yield tp, self._to_message(tp, record)


def _rounds(records: Mapping[TP, Sequence[Any]], epochs: Mapping[TP, int]) -> Iterator[list[Chunk]]:
    """The records of a fetch as chunks, by turns of their partitions, so that lanes work beside each other; small ones together."""
    turns: dict[tuple[int, str], list[Chunk]] = defaultdict(list)
    for tp, batch in records.items():
        for start in range(0, len(batch), CHUNK_MAX):
            turns[start, tp.topic].append(Chunk(tp, batch[start:start + CHUNK_MAX], epochs[tp]))
    for _, chunks in sorted(turns.items()):
        if sum(len(chunk.records) for chunk in chunks) <= TOGETHER_MAX:
            yield chunks
        else:
            yield from ([chunk] for chunk in chunks)


class ChunkRecords(header_names.TolerantRecords):
    """The records of chunks are those of aiokafka's C extension: offset, timestamp, key, value and a list of headers. Its ConsumerRecord
    around each takes twice as long as all else about reading; tests/test_batches.py tells when the private names here change."""

    def __iter__(self) -> Any:
        return self._records_iterator

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        return record if tp.topic in ChunkConsumer.chunk_topics else super()._consumer_record(tp, record)


class ChunkTransport(Transport):
    Consumer = ChunkConsumer


def install() -> None:
    """Make ``chunkkafka://`` broker URLs known to Faust."""
    header_names.install()
    fetcher.PartitionRecords = ChunkRecords
    consumer.Fetcher = PacedFetcher
    TRANSPORTS.aliases[SCHEME] = f"{__name__}:{ChunkTransport.__name__}"
