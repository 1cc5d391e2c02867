"""How far the join of predictions and outcomes has come in each topic that it reads, in Redis, and what follows for its readers.

``joined:<topic>``        partition -> last offset whose pairs are written, looked up and published; ``10>20`` while those of 11 .. 20
                          are written and not yet published (moved by compare-and-set only)
``{joined:<topic>}:ms``   partition -> arrival time before which every record of it is among those; moved with the mark
"""

from __future__ import annotations

from feature_repo.marks import NOTHING, offsets
from feature_repo.models import ModelSpec, Outcomes
from feature_repo.wire import Script, Wire, pack
from schemas.topics import valid_topic

__all__ = ["MOVE", "JoinMarks", "evaluated_ms", "joined_key", "joined_ms_key"]

# The mark of partition ARGV[1] becomes ARGV[3] if it is still ARGV[2] (empty: absent), and its time ARGV[4] (empty: stays). The answer is
# what the mark is afterwards.
MOVE = Script("""
local held = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if held ~= ARGV[2] then return held end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], ARGV[1], ARGV[4]) end
return ARGV[3]
""")


def joined_key(topic: str) -> str:
    return f"joined:{topic}"


def joined_ms_key(topic: str) -> str:
    return f"{{{joined_key(topic)}}}:ms"


class JoinMarks:
    """What this worker has written to the marks of ``topic``, in the words of ``streams.resuming``: a mark is ``held`` as bytes.

    A chunk is begun at the end of the exchange that writes its pairs, and finished when its evaluations are acknowledged. Between
    the two Redis may come back without those pairs: then it does not hold what was begun, and finishing fails.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._written: dict[int, bytes] = {}
        self._passed_ms: dict[int, int] = {}

    def known(self, partition: int) -> bool:
        return partition in self._written

    def lowest(self, partition: int) -> int:
        return _place(self._written[partition])[0]

    def adopt(self, partition: int, held: bytes) -> None:
        self._written[partition] = held

    def forget(self, partition: int) -> None:
        self._written.pop(partition, None)
        self._passed_ms.pop(partition, None)  # a store that went back has lost what came until then

    def passed_ms(self, partition: int) -> int:
        """Everything that arrived until then is done, as far as this worker has said."""
        return self._passed_ms.get(partition, NOTHING)

    def hold(self, partition: int, held: bytes) -> bool:
        """Whether a store that holds this mark has everything that was written."""
        return _place(held) >= _place(self._written[partition])

    def same(self, partition: int, held: bytes) -> bool:
        """Whether nobody has moved the mark."""
        return held == self._written[partition]

    def ask(self, partition: int) -> bytes:
        return pack(("HGET", joined_key(self.topic), partition))

    def begin(self, partition: int, offset: int) -> bytes:
        return self._move(partition, self._begun(partition, offset), None)

    def take_begun(self, partition: int, offset: int, answer: bytes) -> bool:
        return self._take(partition, self._begun(partition, offset), answer)

    def finish(self, partition: int, offset: int, arrival_ms: int) -> bytes:
        return self._move(partition, b"%d" % max(offset, self.lowest(partition)), max(arrival_ms, self.passed_ms(partition)))

    def take_finished(self, partition: int, offset: int, arrival_ms: int, answer: bytes) -> bool:
        finished = self._take(partition, b"%d" % max(offset, self.lowest(partition)), answer)
        if finished:
            self._passed_ms[partition] = max(arrival_ms, self.passed_ms(partition))
        return finished

    def _begun(self, partition: int, offset: int) -> bytes:
        return b"%d>%d" % (self.lowest(partition), offset)

    def _move(self, partition: int, mark: bytes, arrival_ms: int | None) -> bytes:
        keys = joined_key(self.topic), joined_ms_key(self.topic)
        return pack(("EVALSHA", MOVE.sha, 2, *keys, partition, self._written[partition], mark, "" if arrival_ms is None else arrival_ms))

    def _take(self, partition: int, mark: bytes, answer: bytes) -> bool:
        """Whether the mark was moved. If not, Redis went back in time, or another worker was here; it is to be asked anew."""
        if answer == mark:
            self._written[partition] = mark
        else:
            self.forget(partition)
        return answer == mark


def evaluated_ms(wire: Wire, spec: ModelSpec, partitions: int) -> dict[int, int]:
    """Partition of ``evaluations`` -> arrival time: every pair of ``spec`` that was complete (``at_ms``) before it is published there.

    An outcome in any partition may complete a pair of any: so the least of what the partition's predictions and all outcomes have come
    to. A partition of which that is not known is left out. Later answers are larger, but where Redis came back with an older
    state: keep the largest. What came after the horizon, or did not fit, is published by ``headrace outcomes join`` and not counted.
    """
    assert isinstance(spec.labels, Outcomes)
    topics = spec.service.predictions, valid_topic(spec.labels.topic)
    predicted, told = map(offsets, wire.exchange([pack(("HGETALL", joined_ms_key(topic))) for topic in topics]))
    if not told.keys() >= set(range(partitions)):
        return {}
    return {partition: min(at_ms, *told.values()) for partition, at_ms in predicted.items()}


def _place(held: bytes) -> tuple[int, int]:
    """(done, begun) of a mark."""
    done, _, begun = held.partition(b">")
    place = int(done or NOTHING)
    return place, int(begun or place)
