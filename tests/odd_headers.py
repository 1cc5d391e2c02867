"""Sends records as a producer in another language may: header names that are no UTF-8.

``AIOKAFKA_NO_EXTENSIONS=1 python -m tests.odd_headers BOOTSTRAP < records``, a line of JSON each: topic, value, arrival_ms; all go to
partition 0. No Python client sends such a name; aiokafka's Python encoder asks the name for its bytes, and so can be told others.
"""

from __future__ import annotations

import asyncio
import json
import sys

NAME = b"trace-\xff\xfe"


class OddName(str):
    def encode(self, *_: object) -> bytes:
        return NAME


async def send(bootstrap: str) -> None:
    from aiokafka import AIOKafkaProducer

    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for line in sys.stdin:
            one = json.loads(line)
            await producer.send_and_wait(one["topic"], one["value"].encode(), partition=0, timestamp_ms=one["arrival_ms"],
                                         headers=[(OddName("trace"), b"7"), ("plain", b"8")])


if __name__ == "__main__":
    asyncio.run(send(sys.argv[1]))
