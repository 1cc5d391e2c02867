"""The loop stays awake while requests come close together, and sleeps else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.api.busy_poll import BusyPoll


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def run(steps: Callable[[Hand, Callable[[float], BusyPoll]], Awaitable[None]]) -> None:
    hand = Hand()

    async def inside() -> None:
        await steps(hand, lambda within_s: BusyPoll(within_s, hand))

    asyncio.run(inside())


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def arrive(poll: BusyPoll, hand: Hand, n: int, pause_s: float) -> None:
    for _ in range(n):
        hand.s += pause_s
        poll.heard()


def test_awake_while_requests_come_close_together_and_asleep_when_they_end() -> None:
    async def steps(hand: Hand, make: Callable[[float], BusyPoll]) -> None:
        poll = make(0.003)
        arrive(poll, hand, 200, 0.001)
        await turns()
        assert poll.awake
        hand.s += 0.0029
        await turns()
        assert poll.awake, "the next request may come at any moment"
        hand.s += 0.0002
        await turns()
        assert not poll.awake, "nothing came any more"
        arrive(poll, hand, 1, 0.001)
        assert poll.awake, "one pause is no quiet night"

    run(steps)


def test_asleep_between_requests_that_are_further_apart() -> None:
    async def steps(hand: Hand, make: Callable[[float], BusyPoll]) -> None:
        poll = make(0.003)
        arrive(poll, hand, 1_000, 0.004)
        assert not poll.awake
        arrive(poll, hand, 1, 0.0001)
        assert not poll.awake, "two that happen to meet are no load"

    run(steps)


def test_a_busy_minute_is_over_after_some_seldom_requests() -> None:
    async def steps(hand: Hand, make: Callable[[float], BusyPoll]) -> None:
        poll = make(0.003)
        arrive(poll, hand, 200, 0.001)
        hand.s += 1
        await turns()
        arrive(poll, hand, 1, 1.0)
        assert not poll.awake

    run(steps)


def test_never_awake_where_it_is_off() -> None:
    async def steps(hand: Hand, make: Callable[[float], BusyPoll]) -> None:
        poll = make(0.0)
        arrive(poll, hand, 1_000, 0.0)
        assert not poll.awake

    run(steps)


def test_it_takes_one_turn_of_the_loop_after_another_and_never_two_at_once() -> None:
    """Told a hundred times within a turn, it asks once a turn: others' turns come as before."""

    async def steps(hand: Hand, make: Callable[[float], BusyPoll]) -> None:
        poll, asked = make(0.003), 0
        loop = asyncio.get_running_loop()
        arrive(poll, hand, 200, 0.0001)
        real = loop.call_soon

        def counted(callback: Callable[..., object], *told: object, **more: object) -> object:
            nonlocal asked
            asked += getattr(callback, "__self__", None) is poll
            return real(callback, *told, **more)  # type: ignore[arg-type]

        loop.call_soon = counted  # type: ignore[method-assign, assignment]
        await turns(10)
        assert 9 <= asked <= 11

    run(steps)
