"""A thing in the chain with what led to it and what came of it, as a tree: for programs and for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KINDS", "Node", "text"]

KINDS = ("event", "prediction", "evaluation", "detection", "request", "release", "version")
"""What can be asked for, also as ``kind:id`` where an id alone is not enough."""


@dataclass
class Node:
    """``says`` is one line for people. ``more`` is a command that tells the rest; a node of one of KINDS can itself be asked for."""

    kind: str
    id: str
    says: str
    facts: dict[str, Any] = field(default_factory=dict)
    causes: list[Node] = field(default_factory=list)
    effects: list[Node] = field(default_factory=list)
    more: str = ""

    def as_facts(self) -> dict[str, Any]:
        """JSON's types; what is empty is left out."""
        told = {"kind": self.kind, "id": self.id, "says": self.says, "facts": self.facts, "more": self.more,
                "causes": [each.as_facts() for each in self.causes], "effects": [each.as_facts() for each in self.effects]}
        return {name: value for name, value in told.items() if value}


def text(root: Node) -> str:
    lines = [_line(root)]
    lines += [f"  {name}: {value}" for name, value in root.facts.items() if isinstance(value, str | int | float)]
    for title, nodes in (("led to it", root.causes), ("came of it", root.effects)):
        lines += ["", title if nodes else f"{title}: nothing that is known"]
        lines += _tree(nodes)
    return "\n".join([*lines, *(["", f"more: {root.more}"] if root.more else [])])


def _tree(nodes: list[Node], indent: str = "") -> Iterator[str]:
    for number, node in enumerate(nodes, 1):
        last = number == len(nodes)
        yield f"{indent}{'└─' if last else '├─'} {_line(node)}" + (f"  [{node.more}]" if node.more else "")
        yield from _tree([*node.causes, *node.effects], indent + ("   " if last else "│  "))


def _line(node: Node) -> str:
    return f"{node.kind} {node.id}: {node.says}" if node.says else f"{node.kind} {node.id}"
