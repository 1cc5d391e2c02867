"""The one connection to Redis, against a server that answers in drops."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from feature_repo.wire import Wire
from schemas.errors import StoreError

DROPS, PAUSE_S, TIMEOUT_MS = 24, 0.25, 3_000


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


def test_an_answer_in_drops_is_given_up_by_who_is_in_a_hurry_and_heard_out_by_others() -> None:
    """Each drop comes within the timeout, by far; all of them take twice as long. Both ask at once, each a server of its own."""
    with dripping() as one, dripping() as other, ThreadPoolExecutor(1) as thread:
        hurried, patient = Wire(one, TIMEOUT_MS, hurried=True), Wire(other, TIMEOUT_MS)
        heard = thread.submit(patient.call, "PING")
        with pytest.raises(StoreError, match=f"1 of 1 answers had not come in {TIMEOUT_MS} ms"):
            hurried.call("PING")
        assert heard.result() == b"x" * DROPS
        hurried.close()
        patient.close()
