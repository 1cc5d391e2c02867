"""A feature vector does not depend on who else is asked about: batches by the log and lone requests have the same bits."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.fraud import SERVICE, TERMINAL_RISK
from feature_repo.kernel import MERGED, NEWEST, NO_TIME, REFUSED, USED, XOR
from feature_repo.layout import floor_record, packer
from feature_repo.online import Reading
from feature_repo.vector import VectorBuilder
from feature_repo.views import DAY_MS, FeatureView
from schemas.fraud import Outcome, Prediction, Transaction
from schemas.records import ViewStamp
from services.scoring import NO_PLACE, Arrived, predict

NOW_MS = 1_782_000_000_000
CARDS, TERMINALS = ("c0", "c1", "c2"), ("t0", "t1")


def transaction(r: random.Random) -> Transaction:
    return Transaction(f"e{r.randrange(50)}", NOW_MS - r.randrange(40 * DAY_MS), r.choice(CARDS), r.choice(TERMINALS),
                       r.choice((0, 1, 1250, 10**9)))


def outcome(r: random.Random) -> Outcome:
    return Outcome(f"e{r.randrange(50)}", NOW_MS - r.randrange(40 * DAY_MS), r.choice(CARDS), r.choice(TERMINALS), r.random() < 0.5,
                   r.randrange(3))


def hostile_set(r: random.Random, view: FeatureView) -> bytes | None:
    """None, or records in any order with copies, perhaps trimmed below a floor."""
    make, pack = (outcome if view is TERMINAL_RISK else transaction), packer(view)
    records = [pack(make(r)) for _ in range(r.choice((0, 1, 5, 120)))]
    records += r.choices(records, k=len(records) // 4) if records else []
    records += [floor_record(view, NOW_MS - r.randrange(60 * DAY_MS))] if r.random() < 0.3 else []
    r.shuffle(records)
    return b"".join(records) if r.random() < 0.9 else None


def alone(reading: Reading, event: Transaction) -> Reading:
    """What the store would have said of this event only."""
    return Reading(reading.applied, tuple({name: sets[name] for name in [getattr(event, view.entity)]}
                                          for view, sets in zip(SERVICE.views, reading.sets, strict=True)))


def spelt(rows: np.ndarray) -> list[ViewStamp]:
    """One row a view, word by word."""
    return [ViewStamp(view.name, int(row[USED]), f"{int(row[XOR]) % 2**64:016x}", None if row[NEWEST] == NO_TIME else int(row[NEWEST]),
                      bool(row[MERGED]), bool(row[REFUSED])) for view, row in zip(SERVICE.views, rows, strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_batch_has_the_vectors_and_the_records_of_each_event_alone(r: random.Random) -> None:
    names = [r.sample(CARDS, len(CARDS)) if view.entity == "card_id" else r.sample(TERMINALS, len(TERMINALS)) for view in SERVICE.views]
    reading = Reading(((1, 2),) * len(names), tuple({name: hostile_set(r, view) for name in of_view}
                                                    for view, of_view in zip(SERVICE.views, names, strict=True)))
    events, builder = [transaction(r) for _ in range(r.choice((1, 2, 30)))], VectorBuilder(SERVICE)
    batch = [Arrived(event, NO_PLACE, NO_PLACE, NOW_MS, False) for event in events]
    together, records = builder.build(events, reading), predict("fraud", builder, batch, reading, None, NOW_MS)
    for i, event in enumerate(events):
        own = alone(reading, event)
        one = builder.build([event], own)
        assert one.matrix.tobytes() == together.matrix[i:i + 1].tobytes()
        assert (one.stamps[:, 0] == together.stamps[:, i]).all()
        assert predict("fraud", builder, [batch[i]], own, None, NOW_MS) == [records[i]]
        assert msgspec.json.decode(records[i].value, type=Prediction).stamps == spelt(one.stamps[:, 0])


@pytest.mark.parametrize("cut", [1, 8])
def test_a_set_that_is_torn_is_never_read_askew(cut: int) -> None:
    """A word too few, or a byte: what lies behind it would be that of somebody else."""
    pack, event = packer(SERVICE.views[0]), transaction(random.Random(1))
    whole = b"".join(pack(transaction(random.Random(seed))) for seed in range(5))
    sets = [{getattr(event, view.entity): None} for view in SERVICE.views]
    builder = VectorBuilder(SERVICE)
    builder.build([event], Reading(((),) * len(sets), ({event.card_id: whole}, *sets[1:])))
    with pytest.raises(ValueError, match=r"whole number of records|buffer size"):
        builder.build([event], Reading(((),) * len(sets), ({event.card_id: whole[:-cut]}, *sets[1:])))
