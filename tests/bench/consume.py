"""The floor: what reading a topic costs and nothing else. ``python -m tests.bench.consume BOOTSTRAP TOPIC EVENTS``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer

__all__ = ["main"]

ROOT = Path(__file__).parents[2]


def main() -> None:
    bootstrap, topic, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-bare", "auto.offset.reset": "earliest",
                         "enable.auto.commit": False})
    consumer.subscribe([topic])
    read, first, began, cpu = 0, 0, 0.0, 0.0
    while read < wanted:
        read += len(consumer.consume(2000, 0.1))
        if not began and read >= wanted // 10:
            first, began, cpu = read, time.perf_counter(), time.process_time()
    seconds, spent = time.perf_counter() - began, time.process_time() - cpu
    consumer.close()
    print(json.dumps({"events_per_s": (read - first) / seconds, "cpu_us": spent / (read - first) * 1e6}))


if __name__ == "__main__":
    main()
