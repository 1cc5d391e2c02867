"""Feast over the event sets: what ``get_online_features`` answers is what the kernel says of an entity's set at t.

t is one for a whole look-up: asked for with ``reading_at``, else the wall clock, or in a replay the stream's clock. A look-up is
for entities, not for an event, so nothing is merged into the set and features about the current event (``count_same``) are null.
The one module beside ``definitions`` that knows Feast.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from feast import FeatureStore, RepoConfig
from feast.errors import FeastObjectNotFoundException
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, load_repo_config
from pydantic import SecretStr

from feature_repo import kernel
from feature_repo.definitions import ENTITIES, FEATURE_SERVICES, FEATURE_VIEWS, SERVICES, find_view
from feature_repo.layout import join_sets
from feature_repo.online import SetReader
from feature_repo.tiles import tiles_of
from feature_repo.views import FeatureView
from schemas.errors import BelowFloorError, DefinitionError, StoreError
from schemas.settings import read_settings

__all__ = ["EventSetOnlineStore", "EventSetOnlineStoreConfig", "FoundFeature", "HomeRegistryStore", "apply", "look_up", "open_store",
           "reading_at"]

TIMEOUT_MS = 2000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Row = tuple[datetime | None, dict[str, Value] | None]

_asked_ms: ContextVar[int | None] = ContextVar("asked_ms", default=None)


@dataclass(frozen=True)
class FoundFeature:
    """``status`` is Feast's word: PRESENT or NOT_FOUND; ``newest_ms`` the newest event time that the view's values were made from."""

    value: float | None
    status: str
    newest_ms: int | None


@contextmanager
def reading_at(t_ms: int) -> Iterator[None]:
    """Within it, Feast reads features as of ``t_ms`` (UTC ms)."""
    token = _asked_ms.set(t_ms)
    try:
        yield
    finally:
        _asked_ms.reset(token)


def open_store(home: Path, redis_url: str | None = None, tables: str | None = None) -> FeatureStore:
    """The feature store of ``feature_store.yaml`` with its registry in ``home``; without ``redis_url`` HEADRACE_REDIS is read, without
    ``tables`` the archive is where the settings say."""
    repo = Path(__file__).parent
    told = load_repo_config(repo, repo / "feature_store.yaml")
    config = RepoConfig(**{
        **told.model_dump(include={"project", "provider", "entity_key_serialization_version"}),
        "registry": {**told.registry_config, "path": str(home.resolve() / told.registry_config["path"])},
        "online_store": {**told.online_config, "redis": redis_url},
        "offline_store": {**told.offline_config, "tables": tables},
    })
    return FeatureStore(config=config)


def apply(store: FeatureStore) -> dict[str, list[str]]:
    """Make the registry hold what ``definitions`` declares and nothing else. Returns the names by kind, with those removed."""
    kinds: dict[str, tuple[list[Any], list[Any]]] = {
        "feature_services": (list(FEATURE_SERVICES.values()), store.list_feature_services()),
        "feature_views": (list(FEATURE_VIEWS.values()), store.list_feature_views()),
        "entities": (list(ENTITIES.values()), store.list_entities()),
    }
    names = {kind: [found.name for found in declared] for kind, (declared, _) in kinds.items()}
    stale = [found for kind, (_, held) in kinds.items() for found in held if found.name not in names[kind]]
    store.apply([found for declared, _ in kinds.values() for found in declared], objects_to_delete=stale, partial=False)
    return {**names, "removed": [found.name for found in stale]}


def look_up(store: FeatureStore, entities: dict[str, str], at_ms: int | None = None) -> tuple[int, dict[str, FoundFeature]]:
    """The features of all views whose entity is given, through Feast, and the time they are of.

    ``entities`` maps join keys to texts, e.g. ``{"card_id": "596"}``. Raises DefinitionError for an unknown join key, and before
    ``apply``; StoreError where Redis does not answer; BelowFloorError where the history was trimmed.
    """
    if not entities or set(entities) - set(ENTITIES):
        raise DefinitionError(f"no feature view has the entities {', '.join(entities) or 'of nothing'}",
                              hint=f"name some of {', '.join(ENTITIES)}")
    at_ms = EventSetOnlineStore().clock_ms(store.config) if at_ms is None else at_ms
    wanted = {field.name: f"{view.name}:{field.name}" for view in FEATURE_VIEWS.values() for field in view.features
              if set(view.join_keys) <= set(entities)}
    try:
        with reading_at(at_ms):
            answer = store.get_online_features(features=list(wanted.values()), entity_rows=[entities]).proto
    except FeastObjectNotFoundException as error:
        raise DefinitionError(f"the registry lacks what is declared: {error}", hint="run `headrace feast apply`") from error
    found = {name: FoundFeature(result.values[0].double_val if result.values[0].WhichOneof("val") else None,
                                FieldStatus.Name(result.statuses[0]), result.event_timestamps[0].ToMilliseconds() or None)
             for name, result in zip(answer.metadata.feature_names.val, answer.results, strict=True)}
    return at_ms, {name: found[name] for name in wanted}  # Feast answers in an order of its own


class EventSetOnlineStoreConfig(FeastConfigBaseModel):
    """``redis`` is a URL; without it HEADRACE_REDIS is read."""

    type: Literal["feature_repo.feast_store.EventSetOnlineStore"] = "feature_repo.feast_store.EventSetOnlineStore"
    redis: SecretStr | None = None


class HomeRegistryStore(FileRegistryStore):
    """The registry as a file in headrace's home folder. A relative home lies beside ``feature_repo``: Feast changes directory."""

    def __init__(self, registry_config: Any, repo_path: Path | None) -> None:
        super().__init__(registry_config, (repo_path or Path(__file__).parent).parent / read_settings().home)

    def update_registry_proto(self, registry_proto: Any) -> None:
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        super().update_registry_proto(registry_proto)


class EventSetOnlineStore(OnlineStore):
    """Feast's online store over event sets in Redis. One connection, shared by threads."""

    def __init__(self) -> None:
        self._reader: SetReader | None = None
        self._lock = threading.Lock()

    def get_online_features(self, config: RepoConfig, *args: Any, **kwargs: Any) -> Any:
        """As Feast's own, with one t for all views."""
        with reading_at(self.clock_ms(config)):
            return super().get_online_features(config, *args, **kwargs)

    def online_read(self, config: RepoConfig, table: Any, entity_keys: Sequence[Any],
                    requested_features: list[str] | None = None) -> list[Row]:
        """(newest event time used, values) per entity; (None, None), Feast's NOT_FOUND, where no record counts at t.

        A record counts for a delay and a longest window after its event time: that is the view's ttl. A null value is an empty
        Value. Raises BelowFloorError where records that would count were trimmed.
        """
        view = declared(table)
        entities = [text(key) for key in entity_keys]
        t_ms = self.clock_ms(config)
        with self._lock:
            reading = self._open(config).read([(view, entities)])
        sets, tiles = reading.sets[0], reading.tiles[0]
        records, bounds = join_sets(view, sets.values())
        n, index = len(entities), {entity: i for i, entity in enumerate(sets)}
        at = np.fromiter((index[entity] for entity in entities), np.int64, n)
        values, stamps = kernel.read_sets(view, records, bounds[at], bounds[at + 1], np.full(n, t_ms),
                                          np.zeros((n, view.record_words), np.int64), np.full(n, kernel.NONE), tiles_of(view, tiles, at))
        for entity, refused in zip(entities, stamps[:, kernel.REFUSED], strict=True):
            if refused:
                raise BelowFloorError(f"feature view {view.name!r} of {view.entity} {entity!r} at {t_ms} ms needs history that was trimmed",
                                      hint="ask for a later time; history belongs to the tables")
        wanted = [(i, f.name) for i, f in enumerate(view.features) if requested_features is None or f.name in requested_features]
        return [
            (EPOCH + timedelta(milliseconds=int(stamp[kernel.NEWEST])), {name: as_value(row[i]) for i, name in wanted})
            if stamp[kernel.USED] else (None, None)
            for row, stamp in zip(values, stamps, strict=True)
        ]

    def clock_ms(self, config: RepoConfig) -> int:
        """The t of a look-up that begins now. Raises StoreError in a replay of which nothing has been scored."""
        asked = _asked_ms.get()
        if asked is not None:
            return asked
        if read_settings().time == "live":
            return time.time_ns() // 1_000_000
        with self._lock:
            scored_ms = self._open(config).newest_scored_ms(service.name for service in SERVICES)
        if scored_ms is None:
            raise StoreError("the stream's clock has not begun: no event has been scored", hint="ask for a time, or score an event")
        return scored_ms

    def online_write_batch(self, config: RepoConfig, table: Any, data: Any, progress: Any) -> None:
        """Refused: features are computed where they are read, and what is written are events."""
        raise StoreError(f"values of feature view {table.name!r} cannot be written: they are computed from events",
                         hint=f"publish events to {declared(table).source!r}; the feature workers append them")

    def update(self, config: RepoConfig, tables_to_delete: Any, tables_to_keep: Any, entities_to_delete: Any, entities_to_keep: Any,
               partial: bool) -> None:
        """Nothing to do: a key holds its view's definition hash, so versions live side by side and old ones expire."""

    def teardown(self, config: RepoConfig, tables: Any, entities: Any) -> None:
        """Let go of the connection; the sets are the feature workers', and expire."""
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close()

    def _open(self, config: RepoConfig) -> SetReader:
        if self._reader is None:
            url = config.online_store.redis or read_settings().redis
            if url is None:
                raise StoreError("no Redis is named", hint="set HEADRACE_REDIS; `headrace feast get` finds the embedded one by itself")
            self._reader = SetReader(url.get_secret_value(), TIMEOUT_MS, partitions=0)
        return self._reader


def declared(table: Any) -> FeatureView:
    """The declaration of a view of the registry. Raises DefinitionError where it is another version of it."""
    view, applied = find_view(table.name), table.tags.get("definition_hash")
    if view is None or view.definition_hash != applied:
        raise DefinitionError(f"feature view {table.name!r} is {applied} in the registry, {view and view.definition_hash} in the code",
                              hint="run `headrace feast apply`")
    return view


def text(key: Any) -> str:
    """The entity that a Feast key names; numbers as their digits."""
    value = key.entity_values[0]
    return str(getattr(value, value.WhichOneof("val")))


def as_value(number: float) -> Value:
    return Value() if np.isnan(number) else Value(double_val=number)
