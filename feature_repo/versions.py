"""Which version of each view is live: a small file beside the models, so that it outlives the online store.

A view's version is its definition hash. The file keeps every definition that was ever applied as JSON, from which the view is made
again: the old version is read and fed while the code already declares the new one. Without the file, or for a service that it does
not name, what the code declares is live.

    building ──switch──> live ──switch, rollback──> retired ──grace over──> collected ──built again──> building
                          ^─────────rollback───────────┘

Workers feed building, live and retired versions; scorers read the live ones; the compactor leaves building ones alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from feature_repo.manifest import encode, write_synced
from feature_repo.views import FeatureService, FeatureView
from schemas.errors import DefinitionError
from schemas.settings import Settings

__all__ = ["Registry", "Version", "adopted", "building", "collected", "exclusive", "read_registry", "retired", "rolled_back", "service_of",
           "switched", "view_of", "write_registry"]

FILE = "definitions.json"
State = Literal["building", "live", "retired", "collected"]
FED = ("live", "building", "retired")


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``definition`` is the view as JSON; ``until_ms``: arrival time up to which a retired one is kept."""

    definition: str
    state: State
    until_ms: int | None = None

    @property
    def fed(self) -> bool:
        return self.state in FED


class Composition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A feature service: versioned names of its views and names of its request-time features, in order."""

    views: tuple[str, ...]
    request: tuple[str, ...]


class Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``services`` are live, ``next`` is what versions are being built for, ``before`` what was live before the last switch, and
    ``champions``: model -> its bundle then, below the models folder. ``leaving`` are the champions of what is live, written down
    while those of another state are being promoted. ``epoch`` counts the writes.
    """

    epoch: int = 0
    versions: dict[str, Version] = {}
    services: dict[str, Composition] = {}
    next: dict[str, Composition] = {}
    before: dict[str, Composition] = {}
    champions: dict[str, str] = {}
    leaving: dict[str, str] = {}
    format: int = 1

    def names(self, state: State) -> list[str]:
        return [name for name, version in self.versions.items() if version.state == state]


@contextmanager
def exclusive(settings: Settings) -> Iterator[None]:
    """One process at a time changes what is live or removes what was recorded; however it ends, the next one may begin.

    Raises DefinitionError where another one is at it.
    """
    path = _path(settings).with_suffix(".busy")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DefinitionError(f"somebody else applies definitions or erases: {path} is held", hint="wait for its end") from error
        yield


def read_registry(settings: Settings) -> Registry:
    """What was applied; an empty registry where nothing was. Raises DefinitionError where the file is damaged."""
    path = _path(settings)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Registry)
    except FileNotFoundError:
        return Registry()
    except msgspec.MsgspecError as error:
        raise DefinitionError(f"{path} is not a registry of definitions: {error}", hint="it is written by `headrace apply` only") from error


def write_registry(settings: Settings, before: Registry, after: Registry) -> Registry:
    """Put ``after`` in the place of ``before``, in one step; returns it with its epoch.

    Raises DefinitionError where somebody else wrote meanwhile: nothing is changed then.
    """
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (held := read_registry(settings).epoch) != before.epoch:
            raise DefinitionError(f"definitions were applied by somebody else meanwhile (epoch {held}, not {before.epoch})",
                                  hint="look at `headrace plan`, then apply again")
        written = msgspec.structs.replace(after, epoch=before.epoch + 1)
        draft = path.with_name(f".{FILE}.{os.getpid()}")
        write_synced(draft, encode(written))
        draft.replace(path)
    return written


def adopted(registry: Registry, services: Iterable[FeatureService]) -> Registry:
    """``services`` that are not in the registry are live as they are declared, as they were without it."""
    new = [service for service in services if service.name not in registry.services]
    versions = {view.versioned_name: _version(view, "live") for service in new for view in service.views}
    return msgspec.structs.replace(registry, versions=registry.versions | versions,
                                   services=registry.services | {service.name: _composition(service) for service in new})


def building(registry: Registry, views: Iterable[FeatureView], services: Iterable[FeatureService] = ()) -> Registry:
    """``views`` are being built for ``services``, and what else was being built is given up."""
    wanted = {view.versioned_name: view for view in views}
    given_up = {name: _moved(registry.versions[name], "collected") for name in registry.names("building") if name not in wanted}
    new = {name: _version(view, "building") for name, view in wanted.items()}
    return msgspec.structs.replace(registry, versions=registry.versions | given_up | new,
                                   next={service.name: _composition(service) for service in services})


def switched(registry: Registry, services: Iterable[FeatureService], until_ms: int, champions: dict[str, str]) -> Registry:
    """``services`` are live from now on; what only they read before is kept until ``until_ms``. ``champions`` were so far."""
    now = registry.services | {service.name: _composition(service) for service in services}
    return _settled(msgspec.structs.replace(registry, services=now, next={}, before=registry.services, champions=champions,
                                             leaving={}), until_ms)


def rolled_back(registry: Registry, until_ms: int, champions: dict[str, str]) -> Registry:
    """The state before the last switch; rolling back twice changes nothing. Raises DefinitionError where that cannot be had."""
    names = {name for composition in registry.before.values() for name in composition.views}
    if not names:
        raise DefinitionError("nothing was switched, so there is nothing to go back to", hint="`headrace plan` tells what is live")
    if gone := sorted(name for name in names if not registry.versions[name].fed):
        raise DefinitionError(f"the keys of {', '.join(gone)} were removed after the grace period",
                              hint="declare it again; `headrace apply` builds it from the archive")
    return _settled(msgspec.structs.replace(registry, services=registry.before, before=registry.services, champions=champions, leaving={}),
                    until_ms)


def retired(registry: Registry, now_ms: int) -> list[str]:
    """The versions whose grace is over at ``now_ms``."""
    return [name for name in registry.names("retired") if (registry.versions[name].until_ms or 0) <= now_ms]


def collected(registry: Registry, names: Iterable[str]) -> Registry:
    """``names`` are fed no more."""
    gone = {name: _moved(registry.versions[name], "collected") for name in names}
    return msgspec.structs.replace(registry, versions=registry.versions | gone)


@cache
def view_of(definition: str) -> FeatureView:
    """The view that a registry's JSON says. Raises DefinitionError where this code cannot make it."""
    try:
        return msgspec.json.decode(definition, type=FeatureView)
    except msgspec.MsgspecError as error:
        raise DefinitionError(f"cannot make a view of {definition[:100]}: {error}", hint="was it applied by newer code?") from error


def service_of(declared: FeatureService, composition: Composition | None, registry: Registry) -> FeatureService:
    """``declared`` as ``composition`` has it; itself where that is the same, or None.

    Views are made from the registry, functions of request-time features can only be the code's: one that the code no longer has is
    left out, and one of another version is another service to models.
    """
    if composition is None:
        return declared
    known = {view.versioned_name: view for view in declared.views}
    views = tuple(known.get(name) or view_of(registry.versions[name].definition) for name in composition.views)
    functions = {feature.name: feature for feature in declared.request}
    request = tuple(functions[name] for name in composition.request if name in functions)
    if (views, request) == (declared.views, declared.request):
        return declared
    return replace(declared, views=views, request=request)


def _settled(registry: Registry, until_ms: int) -> Registry:
    read = {name for composition in registry.services.values() for name in composition.views}
    versions = {
        name: _moved(version, "live") if name in read else
        _moved(version, "retired", until_ms) if version.state == "live" else version
        for name, version in registry.versions.items()}
    return msgspec.structs.replace(registry, versions=versions)


def _moved(version: Version, state: State, until_ms: int | None = None) -> Version:
    return msgspec.structs.replace(version, state=state, until_ms=until_ms)


def _version(view: FeatureView, state: State) -> Version:
    return Version(msgspec.json.encode(view, order="deterministic").decode(), state)


def _composition(service: FeatureService) -> Composition:
    return Composition(tuple(view.versioned_name for view in service.views), tuple(feature.name for feature in service.request))


def _path(settings: Settings) -> Path:
    return settings.home.resolve() / FILE
