"""Settings: read once from ``HEADRACE_*`` by a command's entry point, then passed down; unknown ones are errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from schemas.errors import SettingsError
from schemas.use_cases import TRAFFIC

__all__ = ["GATHER_MS", "Settings", "read_settings"]

PREFIX = "HEADRACE_"
NOT_OURS = {"HEADRACE_DATA"}  # where the tests' real input lies; no setting of the product

GATHER_MS = {"live": 5, "replay": 0}


class Settings(BaseSettings):
    """Every setting of headrace. With no ``kafka`` and ``redis`` the embedded ones are used."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    home: Path = Field(Path(".headrace"), description="the one folder of the embedded runtime's data, logs, tables and models")
    cache: Path = Field(Path("~/.cache/headrace"), description="downloaded jars, shared by all homes of this user")
    kafka: str | None = Field(None, description="bootstrap servers of an external Kafka, e.g. broker-1:9092; unset: embedded")
    redis: SecretStr | None = Field(None, description="URL of an external Redis, e.g. redis://:secret@host:6379/0")
    use_cases: Annotated[tuple[str, ...], NoDecode] = Field(
        ("fraud",), min_length=1, description="whose topics, views and scorers there are, e.g. fraud or fraud,churn"
    )
    workers: int = Field(1, ge=1, le=64, description="feature workers that `headrace up` starts")
    partitions: int = Field(4, ge=1, le=1024, description="partitions of each event topic when the catalogue creates it")
    replication: int = Field(1, ge=1, le=7, description="replicas of each topic when the catalogue creates it")
    time: Literal["live", "replay"] = Field(
        "live", description="live: the broker stamps arrival (LogAppendTime); replay: the publisher does, with simulated time"
    )
    gather_ms: int | None = Field(None, ge=0, le=1000, description="how long the broker holds events back for a feature worker, and again "
                                  "for a scorer, so that more come at once; unset: 5, and 0 in a replay, whose clock waits for each step")
    redis_timeout_ms: int = Field(50, ge=1, le=60_000, description="how long scoring waits for Redis before it uses defaults")
    outcome_days: int = Field(60, ge=1, le=3650, description="how long predictions wait in Redis for outcomes; what comes later "
                              "`headrace outcomes join` finds")
    outcome_memory_mb: int = Field(256, ge=1, description="what predictions and outcomes that wait may take in Redis; the oldest go first")
    shadow_behind: int = Field(100_000, ge=1, description="how many predictions of a partition may wait for their shadow scores; further "
                               "behind than that some are skipped and counted (not in a replay)")
    person: str | None = Field(None, min_length=1, max_length=128, description="who acts, where a record names a person (approvals, who "
                               "trained a model); unset: the login name")
    keys: Path | None = Field(None, description="folder of the key that signs bundles and of the public keys they are trusted by; "
                              "unset: <home>/keys")
    table_root: str | None = Field(None, description="folder or URL of the Delta tables; unset: <home>/tables")
    mlflow: str | None = Field(None, description="MLflow tracking URI; unset: sqlite in <home>")
    spark_master: str = Field("local[*]", description="Spark master URL")
    spark_memory: str = Field("1g", description="heap of the Spark driver, e.g. 1g")
    process_rows: int = Field(10_000_000, ge=0, description="reads of history over up to so many archived records need no Spark")
    lineage: Literal["file", "openlineage", "off"] = Field(
        "file", description="where runs of jobs are told: <home>/lineage; or to the transport that OpenLineage's own settings name "
        "(OPENLINEAGE_URL, openlineage.yml); or nowhere")
    api_host: str = Field("127.0.0.1", description="address that the HTTP API listens on")
    api_port: int = Field(0, ge=0, le=65_535, description="port of the HTTP API; 0: a free one, which `headrace up` remembers and tells")
    api_deadline_ms: int = Field(250, ge=5, le=60_000, description="after how long a request to score must be answered; what would take "
                                 "longer is refused at once")
    api_batch: int = Field(64, ge=1, le=1000, description="how many concurrent requests the HTTP API scores together at most")
    api_busy_poll_ms: int = Field(0, ge=0, le=100, description="while requests to score come closer together than so many ms, the HTTP API "
                                  "does not sleep between them, for an API that has a core of its own; 0: it always sleeps")
    api_spool_mb: int = Field(64, ge=1, description="predictions that may wait for Kafka, in memory and on disk; beyond it requests are "
                              "refused")
    ready_file: Path | None = Field(None, description="a process writes its pid here once it works; set by the supervisor")

    @field_validator("use_cases", mode="before")
    @classmethod
    def _known_use_cases(cls, told: Any) -> Any:
        names = told.split(",") if isinstance(told, str) else told
        known = [traffic.use_case for traffic in TRAFFIC]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"there is no use case {unknown[0]!r}; known are {', '.join(known)}")
        return names

    @property
    def tables(self) -> str:
        return self.table_root or str(self.home.resolve() / "tables")

    @property
    def mlflow_uri(self) -> str:
        return self.mlflow or f"sqlite:///{self.home.resolve() / 'mlflow.db'}"

    @property
    def outcome_horizon_ms(self) -> int:
        return self.outcome_days * 86_400_000

    def fetch_limits(self, wait_ms: int) -> tuple[int, int]:
        """The broker answers who asks after so many ms, or with so many bytes: ``wait_ms`` or one byte where nothing is gathered."""
        gather_ms = GATHER_MS[self.time] if self.gather_ms is None else self.gather_ms
        return (gather_ms, 64 << 10) if gather_ms else (wait_ms, 1)

    @property
    def key_folder(self) -> Path:
        return self.keys.resolve() if self.keys is not None else self.home.resolve() / "keys"

    @property
    def api(self) -> Path:
        """Where the HTTP API keeps its keys and what waits for Kafka."""
        return self.home.resolve() / "api"

    @property
    def models(self) -> Path:
        return self.home.resolve() / "models"


def read_settings(**overrides: object) -> Settings:
    """The settings of this process's environment, ``overrides`` first.

    Raises SettingsError: which setting, what is wrong with it, what it may be.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_OURS
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}", hint=f"known are {', '.join(sorted(known - NOT_OURS))}")
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"setting {PREFIX}{name.upper()} is not usable: {first['msg']}",
                            hint="unset it, then `headrace doctor --settings` lists every setting") from error
