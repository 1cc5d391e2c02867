"""States that move by compare-and-set: each in one key, with the offsets that it stands for.

A state is written only over the one that its writer went on from. Anything else there means that Redis went back in time, or that
another process has the work now: the writer takes what is there and goes on from its offsets.
"""

from __future__ import annotations

from feature_repo.wire import Script, Wire, pack

__all__ = ["Checkpoint", "Checkpoints", "collector_key", "monitor_key"]

# KEYS[1] the state; ARGV: the number it must have (0: there is none), the new number, the new state. Answers whether it was written.
SAVE = Script("""
if (redis.call('HGET', KEYS[1], 'n') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'n', ARGV[2], 'state', ARGV[3])
return 1
""")

Checkpoint = tuple[int, bytes | None]
"""How often a state was written, and the state (None: never)."""


def collector_key(topic: str, partition: int) -> str:
    """Counts of the open windows of one partition."""
    return f"monitor-counts:{topic}/{partition}"


def monitor_key(model: str) -> str:
    """Detectors, policy and governor of a model."""
    return f"monitor:{model}"


class Checkpoints:
    """One connection, one thread. Raises StoreError where Redis does not answer; calling again is safe."""

    def __init__(self, url: str, timeout_ms: int = 5000) -> None:
        self._wire = Wire(url, timeout_ms, (SAVE,))

    def load(self, key: str) -> Checkpoint:
        n, state = self._wire.call("HMGET", key, "n", "state")
        return int(n or 0), state

    def number(self, key: str) -> int:
        return int(self._wire.call("HGET", key, "n") or 0)

    def save(self, key: str, number: int, state: bytes) -> bool:
        """Whether ``state`` was written over number ``number``. False, too, where it is asked again because the answer got lost: what is
        loaded then is that very state."""
        return bool(self._wire.call("EVALSHA", SAVE.sha, 1, key, number, number + 1, state))

    def times_ms(self, key: str) -> dict[int, int]:
        """A hash of partition -> ms."""
        reply = self._wire.exchange([pack(("HGETALL", key))])[0]
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        return {int(partition): int(ms) for partition, ms in pairs}

    def close(self) -> None:
        self._wire.close()
