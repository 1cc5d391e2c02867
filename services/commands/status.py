"""``headrace status``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from services.commands import add_command, show
from services.words import positive

if TYPE_CHECKING:
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "status", run, help="show processes, lag in events and seconds, rates, model and dead letters",
                         example="headrace status --json")
    parser.add_argument("--interval", type=positive, default=1.0, metavar="S",
                        help="seconds that rates are taken over (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    from schemas.settings import read_settings
    from services.runtime.endpoints import endpoints
    from services.runtime.home import running
    from services.status import read_status

    settings = read_settings()
    status = read_status(settings, endpoints(settings), arguments.interval)
    state = running(settings.home.resolve())
    processes = [asdict(process) for process in state.processes] if state is not None else []
    lines = [f"{p['name']:<10} {p['state']:<9} pid {p['pid']}, restarts {p['restarts']}" for p in processes]
    lines += [f"{g.group:<28} {g.source:<13} lag {g.lag_events:>8} events {g.lag_s:>9.1f} s  {g.events_per_s:>9.1f}/s"
              for g in status.groups]
    lines.append(f"model {status.model or 'none yet'}; {status.predictions} predictions; dead letters "
                 + ", ".join(f"{n} {source}" for source, n in status.dead_letters.items()))
    if dropped := {model: n for model, n in status.shadow_dropped.items() if n}:
        lines.append("shadow too far behind, predictions skipped: " + ", ".join(f"{n} {model}" for model, n in dropped.items()))
    lines.append(f"redis {status.redis_mb} MiB in {status.redis_keys} keys")
    lines += [f"  {s.view:<28} about {s.entities} entities, {s.bytes_per_entity} bytes each, {s.bytes_per_event} an event"
              + (f", {s.long_sets} long sets to compact" if s.long_sets else "") for s in status.sets if s.bytes_per_entity is not None]
    show(arguments, {"processes": processes, **status.facts()}, "\n".join(lines))
