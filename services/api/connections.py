"""Connections that do not wait for ever: a request's head must come within ``HEAD_S``. (uvicorn 0.54 bounds only idle ones.)"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["WHOLE", "PatientProtocol"]

HEAD_S = 10.0
WHOLE = "headrace.whole"
"""In a request's state: its body was there with its head, so nobody has to wait for it."""


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection that has begun, or was opened, and does not go on. tests/test_api_input.py tells when uvicorn changes.

    Most heads come in one piece: a timer is set for those that do not.
    """

    _patience: asyncio.TimerHandle | None = None
    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and self._patience is None:
            self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.scope["state"][WHOLE] = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_head = False
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._patience = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
