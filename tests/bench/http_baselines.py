"""What most would serve with, one process each: Feast's feature server for the features alone, MLflow's model server for the model alone.

And ``echo``, which answers at once: what then is left of a latency belongs to the client, the kernel and uvicorn.

``python -m tests.bench.http_baselines echo|feast|mlflow PORT FOLDER [REDIS]``
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from tests.deadline import eventually

__all__ = ["PATHS", "save_model", "server"]

PATHS = {"echo": "/", "feast": "/get-online-features", "mlflow": "/invocations"}
HEALTH = {"echo": "/", "feast": "/health", "mlflow": "/ping"}


def save_model(fitted: Any, folder: Path) -> None:
    """The classifier as MLflow's model server wants it."""
    import mlflow.xgboost

    mlflow.xgboost.save_model(fitted, str(folder))


@contextmanager
def server(name: str, port: int, folder: Path, redis: str) -> Iterator[int]:
    """It answers from here on; its pid."""
    with subprocess.Popen([sys.executable, "-m", "tests.bench.http_baselines", name, str(port), str(folder), redis],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: process.poll() is not None or _answers(port, HEALTH[name]))
            assert process.poll() is None, f"{name} ended with {process.returncode}"
            yield process.pid
        finally:
            process.terminate()
            process.wait()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """The whole body back, once it is there."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def _answers(port: int, path: str) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as answer:
            return int(answer.status) == 200
    except (URLError, OSError):
        return False


def main() -> None:
    import uvicorn

    name, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    app: Any
    if name == "echo":
        app = echo
    elif name == "feast":
        from feast.feature_server import get_app

        from tests.bench.feast_stock import open_store

        app = get_app(open_store(folder, sys.argv[4]))
    else:
        import mlflow.pyfunc
        from mlflow.pyfunc.scoring_server import init

        app = init(mlflow.pyfunc.load_model(str(folder)))
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning",
                lifespan="off" if name == "echo" else "auto")


if __name__ == "__main__":
    main()
