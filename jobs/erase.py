"""Erasing a person: what the tables and the online store hold of one entity goes; what cannot go yet is said, with its date.

Bronze comes last, for all else is found through it: a run that was killed is run again and finds what the first one left. A second
run finds nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

from feature_repo.bundle import Manifest
from feature_repo.fills import forget_runs
from feature_repo.manifest import MANIFEST_FILE, decode, read_plain
from feature_repo.marks import NOTHING, Progress, applied_key
from feature_repo.models import ModelSpec, Outcomes, UseCase
from feature_repo.pairs import joined_models
from feature_repo.positions import OFFSETS, PARTITION_SHIFT, PARTITIONS
from feature_repo.removal import IDENTITY, remove_pairs, remove_records, remove_sets
from feature_repo.use_cases import USE_CASES, fed_views, use_cases
from feature_repo.versions import read_registry, view_of
from feature_repo.views import DAY_MS, FeatureView
from jobs.archive import archive
from jobs.commits import retry_conflicts
from jobs.erasures import forget, names, remember, report, topics_of
from jobs.events import bronze, bronze_path, bronze_version, events
from jobs.features import history_ms
from jobs.lineage import lineage
from jobs.maintain import vacuum
from jobs.retention import DEFAULT_HOURS, advance_complete
from jobs.spark import use_session
from jobs.tables import table_paths
from jobs.training_rows import parse_period
from schemas.errors import BundleError, JobError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["Erased", "erase"]


@dataclass
class Erased:
    """What was found, and with a dry run would be erased.

    ``sets``: records in the entity's own sets by view; ``shared``: its records in other entities' sets by view; ``rows``: of Delta
    tables, by table and, in bronze, topic. ``behind``: view/partition of feature workers that have not come as far as the archive:
    they will append once more, so run it again. ``training_sets`` and ``models`` were built from the entity's events.
    ``pairs``: predictions and labels of its events that wait in the online store.
    ``old_versions_until_ms``: until then older versions of the tables hold the rows, unless they were vacuumed now.
    """

    entity: dict[str, str]
    dry_run: bool
    sets: dict[str, int]
    shared: dict[str, int]
    rows: dict[str, int]
    behind: list[str]
    training_sets: list[str]
    models: list[str]
    old_versions_until_ms: int | None
    pairs: int = 0
    conflicts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def erase(settings: Settings, name: str, entity: str, kafka: str | None, redis: str, *, dry_run: bool = False, vacuum_now: bool = False,
          tell: Callable[[str], None] = lambda line: None, spark: SparkSession | None = None) -> Erased:
    """Erase all events up to now whose field ``name`` is ``entity``.

    ``kafka`` None: what Kafka has and the archive lacks is not archived first, and so stays. Raises JobError and StoreError; running it
    again is always safe.
    """
    began, conflicts = time.monotonic(), Counter[str]()
    live = (view for case in use_cases(settings, USE_CASES) for view in case.views)
    views = [*dict.fromkeys((*live, *fed_views(settings)))]
    kept = [*views, *(view_of(each.definition) for each in read_registry(settings).versions.values() if each.state == "collected")]
    sources = topics_of(name)[0]
    with lineage(settings, "erase", personal=True) as run, use_session(spark, settings, "erase") as own:
        if kafka is not None and not dry_run:
            tell("archiving what Kafka has")
            archive(settings, kafka, own)
        version = bronze_version(own, settings)
        run.reads_table(bronze_path(settings), version)
        table = bronze(own, settings, version)
        mine = table.where(names(name, entity))
        ends = _end_offsets(table)
        found = Erased({name: entity}, dry_run, {}, {}, {}, _behind(redis, views, sources, ends), [], [], None)
        digest = None if dry_run else retry_conflicts(lambda: remember(own, settings, name, entity, ends), conflicts)
        tell("looking through the online store" if dry_run else "taking records out of the online store")
        found.sets = remove_sets(redis, [view for view in kept if view.entity == name], entity, dry_run=dry_run)
        for view in (view for view in kept if view.source in sources and view.entity != name):
            found.shared[view.versioned_name] = remove_records(redis, view, _identities(mine, view), dry_run=dry_run)
            if not dry_run:
                forget(own, settings, _places(mine, view))
        for told, specs in joined_models(spec for case in USE_CASES for spec in case.models).items():
            found.pairs += remove_pairs(redis, told.topic, [spec.name for spec in specs], _scored(mine, told, specs), dry_run=dry_run)
        tell("finding training sets and models")
        found.models = _models(settings, mine, name)
        ids = _prediction_ids(mine, name)
        others = [path for path in table_paths(own, settings) if path != bronze_path(settings) and "/erased/" not in path]
        for path in others:
            tell(f"{'looking through' if dry_run else 'deleting from'} {path.removeprefix(settings.tables + '/')}")
            n = _delete(own, path, name, entity, ids, dry_run, conflicts)
            label = path.removeprefix(f"{settings.tables}/")
            if n:
                found.rows[label] = n
                found.training_sets += [label] if label.startswith("training_sets/") else []
        found.rows |= {f"bronze/{topic}": n for topic, n in mine.groupBy("topic").count().collect()}
        if digest is not None:
            _finish(own, settings, found, digest, name, entity, others, vacuum_now, conflicts, tell)
            forget_runs(redis, views)
            for path in (bronze_path(settings), *(path for path in others if path.removeprefix(f"{settings.tables}/") in found.rows)):
                run.writes_table(path)
            for view in (view for view in kept if found.sets.get(view.versioned_name) or found.shared.get(view.versioned_name)):
                run.writes_sets(redis, view.versioned_name)
    found.conflicts, found.seconds = dict(conflicts), round(time.monotonic() - began, 2)
    return found


def _finish(spark: SparkSession, settings: Settings, found: Erased, digest: str, name: str, entity: str, others: list[str],
            vacuum_now: bool, conflicts: Counter[str], tell: Callable[[str], None]) -> None:
    """Remember what was found (a second run would not find it), then take the rows out of bronze and old files off the disk."""
    from delta.tables import DeltaTable

    before = report(spark, settings, digest)
    found.training_sets = sorted({*found.training_sets, *before.get("training_sets", [])})
    found.models = sorted({*found.models, *before.get("models", [])})
    told = {"training_sets": found.training_sets, "models": found.models}
    retry_conflicts(lambda: report(spark, settings, digest, told), conflicts)
    tell("deleting from bronze")
    if any(label.startswith("bronze/") for label in found.rows):
        retry_conflicts(lambda: DeltaTable.forPath(spark, bronze_path(settings)).delete(names(name, entity)), conflicts)
    advance_complete(spark, settings)
    tell("removing old files")
    for path in [bronze_path(settings), *others]:
        vacuum(spark, path, 0 if vacuum_now else DEFAULT_HOURS)
    found.old_versions_until_ms = None if vacuum_now else time.time_ns() // 1_000_000 + int(DEFAULT_HOURS * 3_600_000)


def _behind(redis: str, views: list[FeatureView], sources: list[str], ends: dict[str, dict[str, int]]) -> list[str]:
    progress = Progress(redis, views, ())
    try:
        held = {source: progress.groups(source) for source in sources}
    finally:
        progress.close()
    return [f"{view.name}/{partition}" for view in views if view.source in sources for partition, end in ends.get(view.source, {}).items()
            if held[view.source][applied_key(view)].get(int(partition), NOTHING) < end]


def _end_offsets(table: DataFrame) -> dict[str, dict[str, int]]:
    """Topic -> partition -> last archived offset."""
    ends: dict[str, dict[str, int]] = {}
    for topic, partition, offset in table.groupBy("topic", "partition").agg({"offset": "max"}).collect():
        ends.setdefault(topic, {})[str(partition)] = offset
    return ends


def _rows(mine: DataFrame, view: FeatureView) -> DataFrame:
    """The entity's records in the sets of ``view``."""
    return events(mine, view.source, [view])


def _identities(mine: DataFrame, view: FeatureView) -> Iterator[tuple[str, bytes]]:
    rows = _rows(mine, view).select(view.entity, "event_time", "id_hash")
    return ((entity, IDENTITY.pack(*words)) for entity, *words in rows.toLocalIterator())


def _scored(mine: DataFrame, told: Outcomes, specs: Sequence[ModelSpec]) -> Iterator[tuple[str, int]]:
    """(event id, event time) of the entity's events that can be among the pairs."""
    topics = [(told.topic, specs[0].service), *((spec.service.source, spec.service) for spec in specs)]
    rows = [events(mine, topic, service.views, sets=False).select("event_id", "event_time") for topic, service in topics]
    return ((row[0], row[1]) for row in reduce(lambda a, b: a.union(b), rows).distinct().toLocalIterator())


def _places(mine: DataFrame, view: FeatureView) -> DataFrame:
    """Rows of ``erasures.RECORDS``: what reads of other entities lack from now on."""
    from pyspark.sql import functions as F

    at = F.col("position")
    return _rows(mine, view).where("admitted = 1").select(
        F.lit(view.source).alias("topic"), F.shiftright(at, PARTITION_SHIFT).bitwiseAND(PARTITIONS).cast("int").alias("partition"),
        at.bitwiseAND(OFFSETS).alias("offset"), "event_time", F.lit(view.entity).alias("field"), F.col(view.entity).alias("entity"))


def _prediction_ids(mine: DataFrame, name: str) -> DataFrame:
    from pyspark.sql import functions as F

    text = F.col("value").cast("string")
    return (mine.where(F.col("topic").isin(*topics_of(name)[2])).select(F.get_json_object(text, "$.prediction_id").alias("prediction_id"))
            .where("prediction_id IS NOT NULL").distinct())


def _delete(spark: SparkSession, path: str, name: str, entity: str, ids: DataFrame, dry_run: bool, conflicts: Counter[str]) -> int:
    """Rows of the entity in a table that names it, or its predictions."""
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    rows = spark.read.format("delta").load(path)
    if name in rows.columns:
        n = rows.where(F.col(name) == entity).count()
        if n and not dry_run:
            retry_conflicts(lambda: DeltaTable.forPath(spark, path).delete(F.col(name) == entity), conflicts)
    elif "prediction_id" in rows.columns:
        n = rows.join(F.broadcast(ids), "prediction_id", "left_semi").count()
        if n and not dry_run:
            retry_conflicts(lambda: DeltaTable.forPath(spark, path).alias("t").merge(ids.alias("s"), "t.prediction_id = s.prediction_id")
                            .whenMatchedDelete().execute(), conflicts)
    else:
        n = 0
    return n


def _models(settings: Settings, mine: DataFrame, name: str) -> list[str]:
    """Versions one of whose periods, with the history that its features reach back over, holds an event of the entity."""
    from pyspark.sql import functions as F

    used = []
    specs: list[tuple[UseCase, ModelSpec]] = [(case, spec) for case in USE_CASES for spec in case.models]
    for _, spec in specs:
        sources = {spec.service.source, *(view.source for view in spec.service.views)} & set(topics_of(name)[0])
        days: set[int] = set()
        for source in sources:
            of_source = [view for view in spec.service.views if view.source == source]
            found = events(mine, source, of_source, sets=False).select((F.col("event_time") / DAY_MS).cast("long")).distinct().collect()
            days |= {row[0] for row in found}
        past = -(-history_ms(spec.service.views) // DAY_MS)
        for folder in sorted((settings.models / spec.name).glob("*/")):
            try:
                manifest = decode(read_plain(folder, MANIFEST_FILE), Manifest, folder)
                periods = [parse_period("..".join(days_of)) for days_of in (manifest.train, manifest.test)]
            except (BundleError, JobError):  # no bundle that this headrace could load either
                continue
            if any(period.start_ms // DAY_MS - past <= day < period.end_ms // DAY_MS for period in periods for day in days):
                used.append(f"{spec.name}/{manifest.version}")
    return used
