"""A settled verdict holds whatever is archived later: thousands of hostile logs, cut anywhere. No Spark.

A log's records are archived in pieces that end anywhere in each partition. Whoever settles by the rule must say what parity at once
says over all of it; each part of the rule is left out once, and that must show.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from feature_repo import kernel
from feature_repo.positions import asked_position, offset_of, partition_of, position_of
from jobs.classify import Read, Verdict, classify
from jobs.settled import complete_until, covered
from tests.test_classify import SOURCE, VIEWS


@dataclass
class Told:
    """Reads that were settled, and of those how many parity at once calls something else."""

    reads: int = 0
    settled: int = 0
    dropped: int = 0
    hidden: int = 0
    split: int = 0
    examples: list[Any] = field(default_factory=list)


class Log:
    """One entity's records in partitions that come into being one after the other, and a read that a scorer made on the way."""

    def __init__(self, seed: int, drop: bool, asked: bool = False) -> None:
        r = self.random = random.Random(seed)
        self.view = r.choice(VIEWS)
        partitions, clock = r.choice([1, 2, 3, 4]), 100
        offsets, records, arrivals = [-1] * partitions, [], []
        for number in range(r.randrange(2, 14)):
            clock += r.choice([0, 0, 1, 3])
            p = r.randrange(min(partitions, 1 + number))
            offsets[p] += r.choice([1, 1, 2, 5])
            if records and r.random() < 0.3:  # sent again: as it was, with other content, or corrected; maybe by another partition
                time, identity, a, revision = r.choice(records)
                record = (time, identity, a + r.randrange(2), revision + r.randrange(2))
            else:
                record = (clock - r.choice([0, 0, -2, 1, 15, 70]), r.randrange(1, 99), r.randrange(4), 0)
            records.append(record)
            arrivals.append((clock, position_of(SOURCE, p, offsets[p])))
        self.records, self.arrivals = np.array(records, np.int64), np.array(arrivals, np.int64)
        self.partition, self.offset = partition_of(self.arrivals[:, 1]), offset_of(self.arrivals[:, 1])
        self.own = r.randrange(len(records))
        self.made = int(self.own + r.randrange(len(records) - self.own)) + 1  # the log's length when the scorer read
        # A worker had applied a prefix of each partition; the reader learned the marks before, and read the sets after.
        prefix = np.zeros(len(records), bool)
        self.applied = np.full(partitions, -1)
        for p in range(partitions):
            rows = np.flatnonzero((self.partition == p) & (np.arange(len(records)) < self.made))
            held = rows[:r.randrange(len(rows) + 1)] if r.random() < 0.5 else rows
            marked = held[:r.randrange(len(held) + 1)] if r.random() < 0.4 else held
            prefix[held] = True
            if len(marked):
                self.applied[p] = self.offset[marked[-1]]
        self.asked, self.horizon = asked, self.arrivals[self.own]
        if asked:  # by request, when the asker's clock, which may run ahead, said that it is now
            self.horizon = np.array([self.arrivals[self.made - 1, 0] + r.choice([0, 0, 1, 4]), asked_position(SOURCE, 0, 0)])
        self.lost = -1
        stamped = np.flatnonzero(prefix & (self.offset <= self.applied[self.partition]) & (np.arange(len(records)) != self.own))
        if drop and len(stamped):
            self.lost = int(r.choice(stamped.tolist()))
            prefix[self.lost] = False
        self.mode = kernel.INCLUDE if self.view.include_current else kernel.EXCLUDE
        self.seen = prefix
        everything = np.ones(len(records), bool)
        self.answer = self.read(everything).fold(self.seen)

    def read(self, there: Any) -> Read:
        """The read as a parity sees it that has the records ``there``."""
        own = self.records[self.own]
        empty = Read(self.view, self.records[there], self.arrivals[there], int(own[0]), own, self.mode, self.horizon,
                     self.applied, None, 0, 0)
        return empty if not hasattr(self, "answer") else replace(empty, values=self.answer[0], n=self.answer[1], fingerprint=self.answer[2])

    def ends(self, there: Any) -> dict[str, int]:
        return {str(p): int(self.offset[there & (self.partition == p)].max()) for p in np.unique(self.partition[there])}

    def cuts(self, ordered: bool) -> list[Any]:
        """What is archived after each round. ``ordered``: as ``jobs.archive`` does, all that Kafka had at one moment after the read."""
        r, n = self.random, len(self.records)
        if ordered:
            over = 0 if self.asked else int((self.arrivals[:, 0] <= self.arrivals[self.own, 0]).sum())  # the scored record's millisecond is
            first = max(self.made, over)
            return [np.arange(n) < end for end in sorted(r.choices(range(first, n + 1), k=3))]
        cuts, there = [], np.zeros(n, bool)
        for _ in range(4):
            for p in np.unique(self.partition):
                rows = np.flatnonzero(self.partition == p)
                there = there.copy()
                there[rows[:r.randrange(len(rows) + 1)]] = True
            cuts.append(there)
        return cuts


def told(seeds: range, *, ordered: bool, drop: bool = False, by_the_rule: bool = True, asked: bool = False, trusting_ms: int = 0) -> Told:
    """``trusting_ms``: for how long after the newest record nothing more is thought to come."""
    found = Told()
    for seed in seeds:
        log = Log(seed, drop, asked)
        at_once = classify(log.read(np.ones(len(log.records), bool)))
        found.reads += 1
        found.dropped += at_once.unexplained
        for there in log.cuts(ordered):
            if not there[log.own]:
                continue
            verdict = classify(log.read(there))
            complete_ms = complete_until(int(log.arrivals[there, 0].max()), asked) + trusting_ms
            if verdict.unexplained or (by_the_rule and not covered(log.applied[None], log.ends(there), log.horizon[:1], complete_ms)[0]):
                continue
            found.settled += 1
            found.hidden += at_once.unexplained
            found.split += verdict is not at_once and not at_once.unexplained
            if at_once.unexplained:
                found.examples.append((seed, verdict, at_once))
            break
    return found


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("drop", [True, False])
def test_what_is_settled_as_explained_is_explained_at_once_however_the_archive_was_cut(ordered: bool, drop: bool) -> None:
    found = told(range(1500), ordered=ordered, drop=drop)
    assert found.settled > (100 if drop else 1000)
    assert found.hidden == 0, found.examples
    assert (found.dropped > 200) is drop


def test_exact_and_in_flight_are_told_apart_as_at_once_where_sources_come_after_predictions() -> None:
    assert told(range(1500), ordered=True).split == 0
    assert told(range(1500), ordered=False).split > 0, "control: the order of the archive is what it stands on"


def test_an_answer_is_settled_when_the_askers_millisecond_is_over_in_the_archive() -> None:
    found = told(range(3000), ordered=True, asked=True)
    assert (found.hidden, found.split) == (0, 0)
    assert found.settled > 500
    assert told(range(3000), ordered=True, asked=True, drop=True).hidden == 0
    assert told(range(3000), ordered=True, asked=True, trusting_ms=1).split > 0, "control: more may come in that millisecond"
    assert told(range(3000), ordered=True, asked=True, trusting_ms=1000).split > 10, "control: a clock that runs ahead"


def test_without_the_stamps_covered_a_dropped_append_would_be_settled_as_explained() -> None:
    found = told(range(1500), ordered=False, drop=True, by_the_rule=False)
    assert found.hidden > 10


def test_copies_that_come_later_do_not_make_an_explained_read_unexplained() -> None:
    """As many as would be more sets than can be tried."""
    records, arrivals = [(100, 1, 1, 0), (99, 2, 1, 0)], [(100, position_of(SOURCE, 0, 0)), (99, position_of(SOURCE, 1, 0))]
    verdicts = []
    for copies in (0, 110):
        for number in range(copies):
            records += [(99, 2, 1, 0)] * 3
            arrivals += [(200 + number, position_of(SOURCE, p, 1 + number)) for p in range(3)]
        log, places = np.array(records, np.int64), np.array(arrivals, np.int64)
        read = Read(VIEWS[0], log, places, 100, log[0], kernel.INCLUDE, np.array([98, 0]), np.array([0, -1]), None, 0, 0)
        values, n, fingerprint = read.fold(np.arange(len(log)) < 2)
        verdicts.append(classify(replace(read, values=values, n=n, fingerprint=fingerprint)))
    assert verdicts == [Verdict.IN_FLIGHT, Verdict.IN_FLIGHT]
