"""Whether the bytes of an ONNX file hold decision trees and nothing else, said before any library opens them.

The protobuf wire format is walked against the few fields that a tree ensemble needs. All else is refused: tensors (which may
name files outside the bundle), subgraphs, functions, other operators. This costs a scorer no memory; the ``onnx`` package, which
would do the same check less strictly, costs 11 MB.

Source of the field numbers: onnx.proto3 of the ONNX project, IR version 8 to 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from schemas.errors import BundleError

__all__ = ["check_tree_file"]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Message:
    """The fields that may occur: ``plain`` are not looked into, ``inner`` are messages, ``words`` have an allow-list."""

    name: str
    plain: frozenset[int]
    inner: dict[int, Message]
    words: dict[int, frozenset[bytes]]


def message(name: str, plain: str, inner: dict[int, Message] | None = None,
            words: dict[int, frozenset[bytes]] | None = None) -> Message:
    return Message(name, frozenset(map(int, plain.split())), inner or {}, words or {})


# name, f, i, s, doc_string, floats, ints, strings, type; neither t, g, tensors, graphs nor the sparse ones
ATTRIBUTE: Final = message("AttributeProto", "1 2 3 4 7 8 9 13 20")
NODE: Final = message("NodeProto", "1 2 3 6", {5: ATTRIBUTE},
                      {4: frozenset({b"TreeEnsembleClassifier"}), 7: frozenset({b"ai.onnx.ml"})})
# name, doc_string, input, output, value_info; no initializer
GRAPH: Final = message("GraphProto", "2 10 11 12 13", {1: NODE})
# ir_version, producer, domain, model_version, doc_string, opset_import, metadata; neither training_info nor functions
MODEL: Final = message("ModelProto", "1 2 3 4 5 6 8 14", {7: GRAPH})


def check_tree_file(data: bytes) -> None:
    """Raise BundleError unless ``data`` is an ONNX model whose graph has tree ensembles only."""
    if not walk(memoryview(data), MODEL):
        raise not_trees("it has no graph with a tree ensemble")


def walk(data: memoryview, expected: Message) -> bool:
    """Whether a node was seen in ``data``, one ``expected`` message; raises at the first field that does not belong there."""
    found, at = expected is NODE, 0
    while at < len(data):
        tag, at = varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            end = varint(data, at)[1]
        elif wire == LENGTH:
            length, at = varint(data, at)
            end = at + length
        elif wire in (FIXED32, FIXED64):
            end = at + (4 if wire == FIXED32 else 8)
        else:
            raise not_trees(f"wire type {wire} at a field of {expected.name}")
        if end > len(data):
            raise not_trees(f"field {field} of {expected.name} ends behind the file")
        body, at = data[at:end], end
        if field in expected.inner and wire == LENGTH:
            found |= walk(body, expected.inner[field])
        elif field in expected.words and wire == LENGTH:
            if bytes(body[:64]) not in expected.words[field]:
                raise not_trees(f"{expected.name} says {bytes(body[:64])!r}")
        elif field not in expected.plain:
            raise not_trees(f"field {field} of {expected.name} is not allowed")
    return found


def varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise not_trees("a number of it does not end")


def not_trees(fact: str) -> BundleError:
    return BundleError(f"model.onnx is not a file of decision trees: {fact}",
                       hint="bundles hold ONNX tree ensembles only; train the model again")
