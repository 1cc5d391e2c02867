"""What each run of a job read and wrote, as OpenLineage events. The one module that knows the library.

A run starts, and completes or fails; jobs that run inside another name it as their parent. Lineage is told beside the work: where it
cannot be told, that is logged, and the job goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid4, uuid5

from feature_repo.delta_files import table_version
from schemas.errors import HeadraceError
from schemas.settings import Settings

__all__ = ["NAMESPACE", "Run", "lineage", "run_id"]

NAMESPACE = "headrace"
"""Of jobs."""
log = logging.getLogger("lineage")
State = Literal["START", "RUNNING", "COMPLETE", "FAIL", "ABORT"]


@dataclass(frozen=True)
class Data:
    """A topic, table, folder or event set."""

    namespace: str
    name: str
    version: str | None = None


@dataclass
class Run:
    """One run of ``job``; what it ``reads`` and ``writes`` may be told until it ends."""

    settings: Settings
    job: str
    id: str
    parent: Run | None
    streaming: bool
    own_id: str | None
    inputs: list[Data] = field(default_factory=list)
    outputs: list[Data] = field(default_factory=list)

    def reads_table(self, path: str, at: int | None = None) -> None:
        """A Delta table, by default as it is now."""
        self.inputs.append(_stored(path, _newest(path) if at is None else at))

    def writes_table(self, path: str) -> None:
        """To be told once it is written."""
        self.outputs.append(_stored(path, _newest(path)))

    def reads_file(self, path: object, at: object = None) -> None:
        self.inputs.append(_stored(str(path), at))

    def writes_file(self, path: object, at: object = None) -> None:
        self.outputs.append(_stored(str(path), at))

    def reads_topics(self, kafka: str, ends: Mapping[str, Mapping[str, int]]) -> None:
        """``ends``: topic -> partition -> the offset up to and without which it was read."""
        for name, offsets in sorted(ends.items()):
            at = ",".join(f"{partition}:{offset}" for partition, offset in sorted(offsets.items(), key=lambda each: int(each[0])))
            self.inputs.append(Data(f"kafka://{kafka.split(',')[0]}", name, at))

    def writes_topic(self, kafka: str, name: str) -> None:
        self.outputs.append(Data(f"kafka://{kafka.split(',')[0]}", name))

    def writes_sets(self, url: str, name: str) -> None:
        """Event sets of a view in the online store; of ``url`` no password is told."""
        at = urlsplit(url)
        self.outputs.append(Data(f"redis://{at.hostname}:{at.port or 6379}", name))

    def progress(self) -> None:
        """A round of a job that goes on."""
        self._tell("RUNNING")

    def _tell(self, state: State, error: str | None = None) -> None:
        try:
            _emit(self, state, error)
        except Exception as fault:  # whatever a transport raises: the job's result does not depend on it
            log.warning("lineage of %s %s was not told: %s", self.job, self.id, fault)


_CURRENT: ContextVar[Run | None] = ContextVar("lineage_run", default=None)


@contextmanager
def lineage(settings: Settings, job: str, own_id: str | None = None, *, streaming: bool = False, personal: bool = False) -> Iterator[Run]:
    """Tells that a run of ``job`` starts and how it ends.

    ``own_id`` is the job's own: the same work has the same run, however often it dies and is run again. ``personal``: errors may name a
    person, and only their class is told.
    """
    identity = run_id(job, own_id) if own_id is not None else str(uuid4())
    run = Run(settings, job, identity, _CURRENT.get(), streaming, own_id)
    if settings.lineage == "off":
        yield run
        return
    run._tell("START")
    token = _CURRENT.set(run)
    try:
        yield run
    except BaseException as error:
        fact = error.fact if isinstance(error, HeadraceError) and not personal else type(error).__name__
        run._tell("FAIL" if isinstance(error, Exception) else "ABORT", fact)
        raise
    else:
        run._tell("COMPLETE")
    finally:
        _CURRENT.reset(token)


def run_id(job: str, own_id: str) -> str:
    """The run that carries out ``own_id``.

    >>> run_id("retrain", "19e0a3d60f2b34f5")
    'aa7fe4d0-1021-58b4-a4d7-457bf0c22dfd'
    """
    return str(uuid5(NAMESPACE_URL, f"urn:headrace:{job}:{own_id}"))


def _newest(path: str) -> int | None:
    """None for a table that this process cannot read: it has been written all the same."""
    try:
        return table_version(path)
    except Exception as fault:  # as in ``Run._tell``
        log.debug("no version of %s is told: %s", path, fault)
        return None


def _stored(path: str, at: object) -> Data:
    """OpenLineage's names: ``file`` and the path, or scheme and authority of a URL and the path in it."""
    parts, told = urlsplit(path), None if at is None else str(at)
    if parts.scheme and parts.scheme != "file":
        return Data(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.lstrip("/"), told)
    return Data("file", parts.path, told)


def _emit(run: Run, state: State, error: str | None) -> None:
    from openlineage.client import event_v2
    from openlineage.client.facet_v2 import error_message_run, job_type_job, parent_run, tags_run

    event_v2.set_producer(f"urn:headrace:{version('headrace')}")  # facets take it from there
    facets: dict[str, Any] = {}
    if run.parent is not None:
        facets["parent"] = parent_run.ParentRunFacet(parent_run.Run(run.parent.id), parent_run.Job(NAMESPACE, run.parent.job))
    if run.own_id is not None:
        facets["tags"] = tags_run.TagsRunFacet([tags_run.TagsRunFacetFields(f"{run.job}_id", run.own_id, "HEADRACE")])
    if error is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(error, "PYTHON")
    kind = job_type_job.JobTypeJobFacet("STREAMING" if run.streaming else "BATCH", "HEADRACE", jobType="JOB")
    client = _client(run.settings)
    try:
        client.emit(event_v2.RunEvent(
            eventTime=datetime.now(UTC).isoformat(), eventType=event_v2.RunState[state], run=event_v2.Run(run.id, facets),
            job=event_v2.Job(NAMESPACE, run.job, {"jobType": kind}),
            inputs=[event_v2.InputDataset(each.namespace, each.name, facets=_version(each)) for each in dict.fromkeys(run.inputs)],
            outputs=[event_v2.OutputDataset(each.namespace, each.name, facets=_version(each)) for each in dict.fromkeys(run.outputs)]))
    finally:
        client.close()


def _version(data: Data) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {} if data.version is None else {"version": dataset_version_dataset.DatasetVersionDatasetFacet(data.version)}


def _client(settings: Settings) -> Any:
    """Of a transport that appends a line to ``<home>/lineage/<day>.ndjson``, or of the one that OpenLineage's own settings name."""
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport

    logging.getLogger("openlineage").setLevel(logging.WARNING)  # stock it says which transport it uses, for every event
    # Stock looks for a git repository around the folder that a command is given in, which says nothing of this code.
    config: dict[str, Any] = {"facets": {"source_code_location": {"disabled": True}}}
    if settings.lineage == "openlineage":
        return OpenLineageClient(config=config)
    folder = settings.home.resolve() / "lineage"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now(UTC).date().isoformat()}.ndjson"
    return OpenLineageClient(transport=FileTransport(FileConfig(str(path), append=True)), config=config)
