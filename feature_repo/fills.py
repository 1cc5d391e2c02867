"""How far a backfill of a view has come: a hash in the store that it fills, so that both go back in time together.

``backfill:{applied:<view>@<hash>}``  ``run`` -> its plan as JSON; ``<run>/<unit>`` -> what is done of a unit of entities

A unit's field moves by compare-and-set after each pipeline, as the applied marks do: while it is what was last written, all that was
written before it is still there. A store that was flushed, or came back from an older file, has an older field or none, and the
unit is done again. A record of progress that lay elsewhere would outlive the sets that it speaks of.

The braces put the key on the cluster slot of the view's applied marks.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from feature_repo.marks import FROM, applied_key, shortages
from feature_repo.views import FeatureView
from feature_repo.wire import Script, Wire, pack

__all__ = ["Fill", "Fills", "Plan", "fill_key", "forget_runs", "unit_field"]

# Ends a run: where every one of its units is done, takes away what its records make up for. KEYS[1] the run, KEYS[2] the applied
# marks; ARGV run, number of units to be done, what a shortage becomes (empty: nothing), then pairs of a ``from`` field and the value
# that it must still have.
FINISH = Script("""
local done = 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, #ARGV[1]) == ARGV[1] and string.sub(all[i + 1], 1, 5) == 'done ' then done = done + 1 end
end
if done < tonumber(ARGV[2]) then return 0 end
for i = 4, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[i + 1] then
    if ARGV[3] == '' then redis.call('HDEL', KEYS[2], ARGV[i]) else redis.call('HSET', KEYS[2], ARGV[i], ARGV[3]) end
  end
end
redis.call('DEL', KEYS[1])
return 1
""")

KEPT_S = 3 * 86_400
"""An unfinished run is forgotten before VACUUM may remove its version of the archive (a week by default)."""
DONE = b"done "


@dataclass(frozen=True)
class Plan:
    """What a backfill brings in: records of ``bronze_version`` with floor_ms < event time and start_ms <= event time < end_ms.

    ``floor_ms`` is None where nothing is known of what reads need. Which entities make a unit is the ``engine``'s own affair.
    """

    bronze_version: int
    units: int
    floor_ms: int | None
    start_ms: int | None
    end_ms: int | None
    engine: str = "spark"

    @property
    def everything(self) -> bool:
        """Whether it leaves out nothing that a read can need."""
        return self.start_ms is None and self.end_ms is None


@dataclass(frozen=True)
class Fill:
    """A run under way; ``number`` is new where the store has not seen this plan's run, or lost it."""

    number: str
    plan: Plan


def fill_key(view: FeatureView) -> str:
    return f"backfill:{{{applied_key(view)}}}"


def forget_runs(url: str, views: Sequence[FeatureView]) -> None:
    """Unfinished runs over ``views`` begin anew, with the newest version of the archive: an older one has what was erased since."""
    wire = Wire(url, 5000)
    try:
        wire.exchange([pack(("DEL", fill_key(view))) for view in views])
    finally:
        wire.close()


def unit_field(run: str, unit: int) -> str:
    return f"{run}/{unit}"


class Fills:
    """The runs of one view, as the store has them."""

    def __init__(self, url: str, view: FeatureView, timeout_ms: int = 5000) -> None:
        self._wire = Wire(url, timeout_ms, (FINISH,))
        self._key, self._applied, self._max_skew_ms = fill_key(view), applied_key(view), view.max_skew_ms

    def begin(self, plan: Plan) -> Fill:
        """The unfinished run over the same period, as it was planned, else a new one that forgets those before it."""
        told = self._wire.call("HGET", self._key, "run")
        if told is not None:
            held = json.loads(told)
            found = Fill(held.pop("number"), Plan(**held))
            same_period = (found.plan.start_ms, found.plan.end_ms) == (plan.start_ms, plan.end_ms)
            if same_period and found.plan.bronze_version <= plan.bronze_version:  # else the archive was made anew
                return found
        fill = Fill(uuid.uuid4().hex, plan)
        run = json.dumps({"number": fill.number, **asdict(plan)})
        self._wire.exchange([pack(("DEL", self._key)), pack(("HSET", self._key, "run", run)), pack(("EXPIRE", self._key, KEPT_S))])
        return fill

    def done(self, fill: Fill) -> dict[int, dict[str, int]]:
        """Unit -> its counts, of every unit whose records are all in the store."""
        reply: Any = self._wire.call("HGETALL", self._key)
        pairs: Iterable[tuple[bytes, bytes]] = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        head = unit_field(fill.number, 0)[:-1].encode()
        return {int(field[len(head):]): json.loads(value[len(DONE):]) for field, value in pairs
                if field.startswith(head) and value.startswith(DONE)}

    def shortages(self) -> dict[int, tuple[int, int]]:
        """Partition -> (offset, arrival ms) from which on the sets have the log's records, where they lack those before."""
        return shortages(self._wire.call("HGETALL", self._applied))

    def finish(self, fill: Fill, units: int, made_up: dict[int, tuple[int, int]]) -> bool:
        """Forget the run, so that the next one looks at everything again, and the shortages that it ``made_up`` for.

        Of these it stays known that nothing at or below the run's floor was brought in. False, and nothing is changed, where the
        store has not (or no longer) ``units`` units as done.
        """
        pairs = (text for partition, (offset, ms) in made_up.items() for text in (f"{FROM}{partition}", f"{offset} {ms}"))
        floor_ms = fill.plan.floor_ms
        left = "" if floor_ms is None else f"0 {floor_ms - self._max_skew_ms}"
        return bool(self._wire.call("EVALSHA", FINISH.sha, 2, self._key, self._applied, fill.number, units, left, *pairs))

    def close(self) -> None:
        self._wire.close()
