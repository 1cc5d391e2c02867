"""One module per subcommand: ``register(subparsers)`` declares it with ``add_command``; heavy imports stay in its function."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["add_command", "add_group", "show"]


def add_group(subparsers: Subparsers, name: str, *, help: str, example: str) -> Subparsers:
    """Declare a command that has actions; they are added to what this returns."""
    parser = subparsers.add_parser(name, help=help, description=_sentence(help), epilog=f"example: {example}")
    return parser.add_subparsers(metavar="ACTION", required=True)


def add_command(subparsers: Subparsers, name: str, run: Callable[[argparse.Namespace], int | None], *,
                help: str, example: str) -> argparse.ArgumentParser:
    """Declare the subcommand ``name``. Returns its parser, for its own arguments; ``--json`` it has already.

    ``run`` returns the exit code (None is 0) and raises errors of ours, which the command line prints.
    """
    parser = subparsers.add_parser(name, help=help, description=_sentence(help), epilog=f"example: {example}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def show(arguments: argparse.Namespace, facts: Any, text: str) -> None:
    """Print a command's answer: ``facts`` with ``--json``, else ``text``."""
    print(json.dumps(facts, indent=2, default=str) if arguments.json else text, flush=True)
