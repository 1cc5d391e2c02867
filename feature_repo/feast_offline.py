"""Feast over the archived log: ``get_historical_features`` answers what a read at each row's time would have answered.

One row out per row in, in order, doubled rows included. A row with an ``event_id`` is the read for that archived event, as it was
scored: the event belongs to its own read and sees what had arrived before it. A row without is a look-up of entities at its time
and sees what had arrived by then; features about a current event (``count_same``) are null. Reads of more history than this process
should hold go to the function that ``large`` names in feature_store.yaml: Feast finds its stores by such paths, and so no module here
needs to know Spark (docs/decisions/0011-training-sets.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from feast import RepoConfig
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.repo_config import FeastConfigBaseModel

from feature_repo.archive_table import open_archive
from feature_repo.definitions import SERVICES
from feature_repo.feast_store import declared
from feature_repo.history import features_at
from feature_repo.moments import HistoryMode, Moments, needs, placed
from feature_repo.views import FeatureService, FeatureView
from schemas.errors import DefinitionError
from schemas.settings import Settings, read_settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["EventLogOfflineStore", "EventLogOfflineStoreConfig", "reading_history"]

TIME, EVENT = "event_timestamp", "event_id"

_asked: ContextVar[tuple[HistoryMode | None, int | None]] = ContextVar("asked_history", default=(None, None))


@contextmanager
def reading_history(mode: HistoryMode | None = None, version: int | None = None) -> Iterator[None]:
    """Within it, Feast's historical reads are of this mode (else the store's) and archive version (else the newest complete one)."""
    token = _asked.set((mode, version))
    try:
        yield
    finally:
        _asked.reset(token)


class EventLogOfflineStoreConfig(FeastConfigBaseModel):
    """``mode``: ``known`` sees what had arrived by then, ``ideal`` whatever arrived since; ``tables``: where the archive lies, unset:
    as HEADRACE_TABLE_ROOT and HEADRACE_HOME say; ``large``: module and function for reads of more than HEADRACE_PROCESS_ROWS records."""

    type: Literal["feature_repo.feast_offline.EventLogOfflineStore"] = "feature_repo.feast_offline.EventLogOfflineStore"
    mode: HistoryMode = "known"
    tables: str | None = None
    large: str = "jobs.historical.historical_features"


class EventLogOfflineStore(OfflineStore):
    """Feast's offline store over the Delta archive."""

    @staticmethod
    def get_historical_features(config: RepoConfig, feature_views: list[Any], feature_refs: list[str], entity_df: Any, registry: Any,
                                project: str, full_feature_names: bool = False, **kwargs: Any) -> RetrievalJob:
        """A job whose answer is ``entity_df`` with one column a feature. Raises DefinitionError for what cannot be asked."""
        if entity_df is None or isinstance(entity_df, str) or kwargs:
            raise DefinitionError("history is read for the rows of a data frame", hint=f"give entity_df, with {TIME} and the entities")
        mode, version = _asked.get()
        asked = [_Asked(declared(view), view.projection.name_to_use(), view.projection.join_key_map) for view in feature_views]
        return EventLogJob(config, asked, feature_refs, entity_df.reset_index(drop=True), mode or config.offline_store.mode, version,
                           full_feature_names)


@dataclass(frozen=True)
class _Asked:
    """A view as the caller names it and its join key."""

    view: FeatureView
    name: str
    renamed: dict[str, str]

    @property
    def key(self) -> str:
        return self.renamed.get(self.view.entity, self.view.entity)


class EventLogJob(RetrievalJob):
    """Computed when its rows are asked for, each time anew."""

    def __init__(self, config: RepoConfig, asked: Sequence[_Asked], refs: Sequence[str], entities: pd.DataFrame, mode: HistoryMode,
                 version: int | None, full_names: bool) -> None:
        if missing := sorted({TIME, *(each.key for each in asked)} - set(entities.columns)):
            raise DefinitionError(f"entity_df has no column {missing[0]!r}", hint=f"it needs {TIME} and one column a join key")
        self._config, self._asked, self._refs, self._entities = config, asked, list(refs), entities
        self._mode, self._version, self._full_names = mode, version, full_names

    @property
    def full_feature_names(self) -> bool:
        return self._full_names

    @property
    def on_demand_feature_views(self) -> list[Any]:
        return []

    @property
    def metadata(self) -> RetrievalMetadata:
        times = self._entities[TIME]
        return RetrievalMetadata(self._refs, [name for name in self._entities.columns if name != TIME], times.min(), times.max())

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        import pyarrow as pa

        table = pa.Table.from_pandas(self._entities, preserve_index=False)
        by_view = {each.name: (each, values) for each, values in zip(self._asked, self._values(), strict=True)}
        for ref in self._refs:
            name, _, feature = ref.partition(":")
            each, values = by_view[name]
            at = [declared.name for declared in each.view.features].index(feature)
            table = table.append_column(f"{name}__{feature}" if self._full_names else feature,
                                        pa.array(np.ascontiguousarray(values[:, at]), from_pandas=True))
        return table

    def _values(self) -> list[Any]:
        """float64[n, features] of each view asked; views of one join key are read together."""
        settings = read_settings(table_root=self._config.offline_store.tables)
        answers: dict[int, Any] = {}
        for renaming in dict.fromkeys(tuple(sorted(each.renamed.items())) for each in self._asked):
            group = [each for each in self._asked if tuple(sorted(each.renamed.items())) == renaming]
            service = asked_service([each.view for each in group])
            moments = self._moments({each.view.entity: each.key for each in group})
            matrix = self._read(settings, service, moments)
            answers |= {id(each): matrix[:, service.view_slice(each.view)] for each in group}
        return [answers[id(each)] for each in self._asked]

    def _read(self, settings: Settings, service: FeatureService, moments: Moments) -> Any:
        if not len(moments):
            return np.empty((0, len(service.feature_names)))
        archive = open_archive(settings, self._version)
        needed = needs(service, moments, self._mode)
        if needed.count(archive) + len(moments) > settings.process_rows:
            module, _, function = self._config.offline_store.large.rpartition(".")
            return getattr(import_module(module), function)(settings, service, moments, self._mode, archive.version)
        sources = needed.load(archive)
        return features_at(service, sources, placed(moments, sources.get(service.source), self._mode))

    def _moments(self, keys: dict[str, str]) -> Moments:
        import pandas as pd
        import pyarrow as pa

        times = pd.to_datetime(self._entities[TIME], utc=True)
        columns = {entity: self._entities[key] for entity, key in keys.items()}
        for name, column in {TIME: times, **columns}.items():
            if column.isna().any():
                raise DefinitionError(f"{int(column.isna().sum())} rows of entity_df have no {name}", hint="every row is one read")
        t = times.astype("datetime64[ns, UTC]").astype("int64").to_numpy() // 1_000_000
        events = self._entities[EVENT] if EVENT in self._entities.columns else pd.Series([None] * len(t), dtype=object)
        return Moments(t, {entity: pa.chunked_array([pa.array(column.astype(str), pa.string())]) for entity, column in columns.items()},
                       pa.chunked_array([pa.array(events, pa.string(), from_pandas=True)]))


def asked_service(views: Sequence[FeatureView]) -> FeatureService:
    """A service of these views; its source is that of the declared service that has them all, whose events rows may name."""
    source = next((service.source for service in SERVICES if set(views) <= set(service.views)), views[0].source)
    return FeatureService(name="asked", source=source, views=tuple(views))
