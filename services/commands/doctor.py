"""``headrace doctor``"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers

MARKS = {"ok": "ok     ", "warning": "warning", "missing": "MISSING"}


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "doctor", run, help="name what is missing or unsafe here, and the command that mends it",
                         example="headrace doctor --settings")
    parser.add_argument("--settings", action="store_true", help="list every setting, its value and its meaning")


def run(arguments: argparse.Namespace) -> int:
    if arguments.settings:
        return _settings(arguments)
    from services.runtime.doctor import examine

    findings = list(examine())
    lines = [f"{MARKS[finding.verdict]} {finding.name:<14} {finding.fact}" + (f"\n{'':<23}-> {finding.mend}" if finding.mend else "")
             for finding in findings]
    show(arguments, [asdict(finding) for finding in findings], "\n".join(lines))
    return int(any(finding.verdict == "missing" for finding in findings))


def _settings(arguments: argparse.Namespace) -> int:
    from schemas.settings import PREFIX, Settings, read_settings

    now = read_settings()  # a secret's str() is stars
    facts = [{"name": PREFIX + name.upper(), "value": getattr(now, name), "set": name in now.model_fields_set, "default": field.default,
              "meaning": field.description} for name, field in Settings.model_fields.items()]
    lines = [f"{fact['name']:<26} {fact['value']!s:<24} {'(set) ' if fact['set'] else ''}{fact['meaning']}" for fact in facts]
    show(arguments, facts, "\n".join(lines))
    return 0
