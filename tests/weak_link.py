"""A TCP proxy that can be made slow, silent or shut: the network between a process and its store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Mood = Literal["well", "slow", "silent", "shut"]


class WeakLink:
    """Forwards to ``target``. ``slow`` holds every answer back by ``delay_s``, ``silent`` answers nothing, ``shut`` hangs up."""

    def __init__(self, target: int, delay_s: float) -> None:
        self.mood: Mood = "well"
        self.port = 0
        self._target, self._delay_s = target, delay_s

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mood == "shut":
            return writer.close()
        try:
            answers, questions = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            return writer.close()
        await asyncio.gather(self._pass(reader, questions), self._pass(answers, writer, back=True))

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: bool = False) -> None:
        try:
            while data := await source.read(65_536):
                if self.mood == "shut":
                    break
                if back and self.mood == "slow":
                    await asyncio.sleep(self._delay_s)
                if self.mood != "silent":
                    sink.write(data)
                    await sink.drain()
        except OSError:
            pass  # the other side hung up
        finally:
            sink.close()


@contextmanager
def weak_link(target: int, delay_s: float) -> Iterator[WeakLink]:
    """A proxy on a free loopback port, in a thread of its own."""
    link, loop = WeakLink(target, delay_s), asyncio.new_event_loop()
    server = loop.run_until_complete(link.serve())
    thread = threading.Thread(target=loop.run_forever, name="weak-link")
    thread.start()
    try:
        yield link
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
