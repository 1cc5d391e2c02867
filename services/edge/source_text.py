"""Functions as the text of a module that stands alone: they, what they call and the constants they use, as they are written."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

from schemas.errors import DefinitionError

__all__ = ["module_of"]

HEAD = '''"""Made by `headrace export --edge`, as the features are declared there; not to be edited."""

from __future__ import annotations

import numpy as np'''
PLAIN = (bool, int, float, str)


def module_of(features: Mapping[str, Callable[..., Any]], derived: Mapping[str, Mapping[str, Callable[..., Any]]]) -> str:
    """A module with ``FEATURES``, name -> function, and ``DERIVED``, source -> field -> function of an event; it needs numpy alone.

    Raises DefinitionError where a function uses more than numpy, functions and plain constants of its own module.
    """
    constants: dict[str, str] = {}
    functions: dict[str, tuple[Callable[..., Any], str]] = {}
    for function in (*features.values(), *(each for fields in derived.values() for each in fields.values())):
        _collect(function, constants, functions)

    def table(of: Iterable[tuple[str, Callable[..., Any]]]) -> str:
        return "{" + ", ".join(f"{name!r}: {function.__name__}" for name, function in of) + "}"

    of_sources = ", ".join(f"{source!r}: {table(fields.items())}" for source, fields in derived.items())
    parts = ["\n".join(f"{name} = {text}" for name, text in constants.items()), *(text for _, text in functions.values())]
    return "\n\n\n".join([HEAD, *parts, f"FEATURES = {table(features.items())}\nDERIVED = {{{of_sources}}}\n"])


def _collect(function: Callable[..., Any], constants: dict[str, str], functions: dict[str, tuple[Callable[..., Any], str]]) -> None:
    name = function.__name__
    if name in functions:
        if functions[name][0] is not function:
            raise DefinitionError(f"two functions of one vector are called {name!r}", hint="rename one")
        return
    if not isinstance(function, FunctionType) or function.__closure__ or not name.isidentifier():
        raise DefinitionError(f"{name!r} is no plain function of a module, so it cannot travel", hint="declare it with def")
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()[tree.lineno - 1:]  # without its decorators
    functions[name] = function, "\n".join(lines)
    used = {node.id for statement in tree.body for node in ast.walk(statement) if isinstance(node, ast.Name)}
    for each in sorted(used & function.__globals__.keys() - set(function.__code__.co_varnames)):
        value = function.__globals__[each]
        if isinstance(value, ModuleType) and value.__name__ == "numpy" and each == "np":
            continue
        if isinstance(value, FunctionType):
            _collect(value, constants, functions)
        elif isinstance(value, PLAIN) and constants.get(each, repr(value)) == repr(value):
            constants[each] = repr(value)
        else:
            raise DefinitionError(f"{name!r} uses {each!r}, which cannot travel", hint="use numpy as np, functions and plain constants")
