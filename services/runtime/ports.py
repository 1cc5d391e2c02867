"""Loopback ports of the embedded engines: remembered, so that a restart keeps them; chosen anew when somebody took one."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import RuntimeFault

__all__ = ["bindable", "reserve"]

# Below the kernel's ephemeral range. A port inside it may become the near end of somebody's connection while its server
# restarts, and a client that polls such a port can even connect to itself.
LOWEST, HIGHEST = 20_000, 32_000


def reserve(home: Path, names: Sequence[str]) -> dict[str, int]:
    """A free loopback port for each name, those of the last time where they are still free."""
    file = home / "ports.json"
    remembered: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    ports: dict[str, int] = {}
    for name in names:
        last = remembered.get(name)
        ports[name] = last if last and bindable(last) else _choose(set(ports.values()) | set(remembered.values()))
    file.write_text(json.dumps({**remembered, **ports}))
    return ports


def bindable(port: int) -> bool:
    """Nobody listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: closed connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _choose(taken: set[int]) -> int:
    for port in random.SystemRandom().sample(range(LOWEST, HIGHEST), 200):
        if port not in taken and bindable(port):
            return port
    raise RuntimeFault(f"no free loopback port between {LOWEST} and {HIGHEST}", hint="see who listens: ss -ltnp")
