"""The one connection to Redis, against a server that answers in drops."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from feature_repo.wire import Wire
from schemas.errors import StoreError

DROPS, PAUSE_S, TIMEOUT_MS = 40, 0.05, 1_000


@contextmanager
def dripping() -> Iterator[str]:
    """Where somebody answers whatever is sent with a text of DROPS bytes, one after each pause."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            heard = b""
            while data := connection.recv(1 << 16):
                heard += data
                if b"PING" not in heard:  # redis-py introduces itself first
                    connection.sendall(b"+OK\r\n" * heard.count(b"SETINFO"))
                    heard = b""
                    continue
                try:
                    connection.sendall(b"$%d\r\n" % DROPS)
                    for drop in [b"x"] * DROPS + [b"\r\n"]:
                        stop.wait(PAUSE_S)
                        connection.sendall(drop)
                except OSError:
                    return
                heard = b""

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0?protocol=2"
        stop.set()
    thread.join(10)


@pytest.mark.parametrize("hurried", [True, False])
def test_an_answer_in_drops_is_given_up_by_who_is_in_a_hurry_and_heard_out_by_others(hurried: bool) -> None:
    """Each drop comes within the timeout; all of them take twice as long."""
    with dripping() as url:
        wire = Wire(url, TIMEOUT_MS, hurried=hurried)
        if hurried:
            with pytest.raises(StoreError, match="1 of 1 answers had not come in 1000 ms"):
                wire.call("PING")
        else:
            assert wire.call("PING") == b"x" * DROPS
        wire.close()
