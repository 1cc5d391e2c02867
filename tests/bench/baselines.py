"""The same topic read by others, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["FAUST_EVENTS", "bare_consumer", "stock_faust"]

FAUST_EVENTS = 100_000
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300


def bare_consumer(bootstrap: str, topic: str, events: int) -> dict[str, float]:
    """confluent-kafka in batches that are counted and dropped: events_per_s and cpu_us an event, without the first tenth."""
    done = subprocess.run([sys.executable, "-m", "tests.bench.consume", bootstrap, topic, str(events)], cwd=ROOT, check=True,
                          stdout=subprocess.PIPE, timeout=TIMEOUT_S)
    read: dict[str, float] = json.loads(done.stdout)
    return read


def stock_faust(bootstrap: str, topic: str, events: int, loop: str = "aio") -> dict[str, float]:
    """Faust's own Kafka transport and an agent that does nothing: the same figures. ``loop`` "aio" is its default."""
    with tempfile.TemporaryDirectory(prefix="bench-faust-") as folder:
        result = Path(folder, "result.json")
        of_bench = {"BENCH_KAFKA": bootstrap, "BENCH_TOPIC": topic, "BENCH_EVENTS": str(events), "BENCH_RESULT": str(result),
                    "BENCH_DATADIR": str(Path(folder, "data"))}
        command = [sys.executable, "-m", "faust", f"--loop={loop}", "-A", "tests.bench.stock_faust", "worker", "-l", "error",
                   "--without-web"]
        said = subprocess.run(command, cwd=ROOT, env={**os.environ, **of_bench}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=TIMEOUT_S)
        assert result.exists(), said.stdout.decode()[-2000:]
        read: dict[str, float] = json.loads(result.read_text())
        return read
