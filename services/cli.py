"""The ``headrace`` command: finds its subcommands in ``services/commands``, turns our errors into messages and exit codes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Sequence

import services.commands
from schemas.errors import HeadraceError

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """The command line with every subcommand."""
    top = argparse.ArgumentParser(prog="headrace", description="Streaming features, exact and explainable.",
                                  epilog="example: headrace up; each command's --help has one of its own")
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)
    for module in pkgutil.iter_modules(services.commands.__path__):
        importlib.import_module(f"services.commands.{module.name}").register(subparsers)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0, that of the error (schemas/errors.py), 2 for a wrong command line."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except HeadraceError as error:
        if arguments.json:
            print(json.dumps({"error": error.fact, "hint": error.hint}), file=sys.stderr)
        else:
            print(f"error: {error.fact}" + (f"\n hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `headrace ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
