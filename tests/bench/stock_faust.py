"""Faust as it comes: an agent with an empty body. ``faust -A tests.bench.stock_faust worker``; topic and count by environment."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import faust

TOPIC, WANTED, RESULT = os.environ["BENCH_TOPIC"], int(os.environ["BENCH_EVENTS"]), os.environ["BENCH_RESULT"]
app = faust.App(f"bench-stock-{time.time_ns()}", broker=f"kafka://{os.environ['BENCH_KAFKA']}",
                datadir=os.environ["BENCH_DATADIR"], web_enabled=False,
                topic_allow_declare=False, topic_disable_leader=True, consumer_auto_offset_reset="earliest")
topic = app.topic(TOPIC, value_serializer="raw", value_type=None)


@app.agent(topic)
async def nothing(stream: Any) -> None:
    read, began, cpu = 0, 0.0, 0.0
    async for _ in stream:
        read += 1
        if read == WANTED // 10:
            began, cpu = time.perf_counter(), time.process_time()
        elif read == WANTED:
            counted = WANTED - WANTED // 10
            rate, spent = counted / (time.perf_counter() - began), (time.process_time() - cpu) / counted * 1e6
            with open(RESULT, "w") as file:
                json.dump({"events_per_s": rate, "cpu_us": spent}, file)
            os._exit(0)  # a shutdown in order would be measured by nobody
