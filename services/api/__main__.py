"""``python -m services.api``: one process of the HTTP API, until SIGTERM or Ctrl-C; then every request that came is still answered."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from schemas.errors import SettingsError
from schemas.settings import Settings, read_settings
from services.api.application import Application
from services.api.connections import PatientProtocol
from services.api.keys import ensure_key
from services.runtime.ports import reserve

DRAIN_S = 0.5
GRACE_S = 10
BACKLOG = 2048
SWITCH_S = 0.0005
"""What threads do beside the loop (a new model is loaded, a topic is looked through) must not hold up an answer for 5 ms at a time."""


class Server(uvicorn.Server):
    """Stops in two steps: first every answer ends its connection, so clients go by themselves; then the rest is closed."""

    def __init__(self, config: uvicorn.Config, application: Application, settings: Settings) -> None:
        super().__init__(config)
        self._application, self._settings = application, settings

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Theirs would end the process by the signal once all is done; a stop that was asked for is no failure."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        yield

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        gc.collect()
        gc.freeze()  # what is loaded stays: walking through it again and again would hold up answers
        ready = self._settings.ready_file
        if self.started and ready is not None:
            ready.parent.mkdir(parents=True, exist_ok=True)
            ready.write_text(str(os.getpid()))

    def _drain(self) -> None:
        self._application.drain()
        asyncio.get_running_loop().call_later(DRAIN_S, setattr, self, "should_exit", True)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    settings = read_settings()
    sys.setswitchinterval(SWITCH_S)
    try:
        logging.getLogger("api").info("keys are in %s, the first one is %s", settings.api, ensure_key(settings.api))
    except SettingsError as error:  # it would serve nobody, and say that all is well
        logging.getLogger("api").error("%s; %s", error.fact, error.hint)
        return error.exit_code
    port = settings.api_port or reserve(settings.home.resolve(), ("api",))["api"]
    application = Application(settings)
    config = uvicorn.Config(application.app, settings.api_host, port, loop="uvloop", http=PatientProtocol, ws="none", lifespan="on",
                            access_log=False, log_config=None, server_header=False, proxy_headers=False, backlog=BACKLOG,
                            timeout_graceful_shutdown=GRACE_S)
    Server(config, application, settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
