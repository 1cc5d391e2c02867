"""One connection to Redis: packed commands out, replies in, scripts loaded, every fault a StoreError. Owner of redis-py.

redis-py's pipeline costs 4.7 us a command; its connection with ``hiredis.pack_command`` costs 0.8 us, and 1.1 us a reply. Replies
are taken from hiredis in one loop, at a tenth of that; ``_parser`` and its ``_reader`` are private names of redis-py 7.4, which the
lock pins, and every test on a real server tells when they change.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import hiredis
import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from schemas.errors import StoreError

__all__ = ["Script", "Wire", "pack"]

READ_BYTES = 1 << 19
"""Taken from the socket at once: the set of the busiest entity that ``bounds.check_size`` admits."""

pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
"""The bytes of one command from its parts: str, bytes, int or float."""


class Script:
    """A Lua script, named by the digest that Redis gives it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Wire:
    """Pipelined exchanges over one connection; after a fault the next exchange connects anew. Not for two threads at once.

    Parameters
    ----------
    url
        redis://, rediss:// or unix:// URL.
    timeout_ms
        How long one socket operation may take.
    scripts
        Loaded on every new connection, so that a restarted server knows them.
    hurried
        An answer that comes in drops is given up: no operation is begun when ``timeout_ms`` have passed. For readers; what writes
        may take long, and begun anew it would take as long again.
    """

    def __init__(self, url: str, timeout_ms: int, scripts: Sequence[Script] = (), *, hurried: bool = False) -> None:
        self._pool = redis.ConnectionPool.from_url(
            url, socket_timeout=timeout_ms / 1000, socket_connect_timeout=timeout_ms / 1000, retry=None, max_connections=2**31,
            socket_read_size=READ_BYTES)
        self._scripts = scripts
        self._connection: Any = None
        self._owed = False
        self._connections = 0
        self._hurried = hurried
        self.timeout_ms = timeout_ms

    @property
    def connection(self) -> int | None:
        """A number for the connection that the next exchange goes over; None where it makes a new one, perhaps to another server's past."""
        return self._connections if self._connection is not None else None

    @property
    def fileno(self) -> int | None:
        """Of the socket that is connected now, for whoever waits for it in an event loop."""
        return self._connection._sock.fileno() if self._connection is not None else None

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """The replies to packed ``commands``, in order.

        Raises StoreError when the server does not answer in time, closes the connection, or answers any command with an error;
        then any prefix of the commands may have been carried out.
        """
        self.send(commands)
        return self.receive(len(commands))

    def send(self, commands: Sequence[bytes]) -> None:
        """The first half of ``exchange``: Redis works while the caller does something else.

        Replies that nobody has received when more is sent are dropped, with their connection: they must never be taken for
        those of another question.
        """
        if self._owed:
            self.close()
        try:
            self._owed = True
            connection = self._connection or self._connect()
            connection.send_packed_command([b"".join(commands)])
        except BaseException as error:
            self._fail(error, len(commands))
            raise

    def receive(self, number: int) -> list[Any]:
        """The replies to the ``number`` commands that were sent."""
        try:
            if self._connection is None:
                raise redis.ConnectionError("the connection was closed before it answered")
            replies = _read(self._connection._parser, number, self.timeout_ms / 1000 if self._hurried else float("inf"))
        except BaseException as error:
            self._fail(error, number)
            raise
        self._owed = False
        return replies

    def call(self, *arguments: Any) -> Any:
        return self.exchange([pack(arguments)])[0]

    def close(self) -> None:
        connection, self._connection, self._owed = self._connection, None, False
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)

    def _fail(self, error: BaseException, number: int) -> None:
        """Close, for replies may be left unread. Raises StoreError where ``error`` is Redis's, or the connection's."""
        self.close()
        if isinstance(error, (redis.RedisError, OSError)):
            raise StoreError(f"online store did not do {number} commands: {error}", hint="is Redis up? `headrace status` tells") from error

    def _connect(self) -> Any:
        connection: Any = self._pool.make_connection()
        connection.connect()
        for script in self._scripts:
            connection.send_command("SCRIPT", "LOAD", script.source)
            connection.read_response()
        self._connection = connection
        self._connections += 1
        return connection


def _read(parser: Any, number: int, seconds: float) -> list[Any]:
    """The next ``number`` replies, as bytes, int, None and lists of them. Raises redis.RedisError for an error among them, or a fault."""
    replies: list[Any] = []
    until = time.monotonic() + seconds
    take = partial(parser._reader.gets, False)
    while True:
        fresh = list(islice(iter(take, NOT_ENOUGH_DATA), number - len(replies)))  # no step of it is Python
        if any(issubclass(kind, redis.RedisError) for kind in set(map(type, fresh))):
            raise next(reply for reply in fresh if isinstance(reply, redis.RedisError))
        replies += fresh
        if len(replies) == number:
            return replies
        if time.monotonic() > until:
            raise redis.TimeoutError(f"{number - len(replies)} of {number} answers had not come in {seconds * 1000:.0f} ms")
        parser.read_from_socket()
