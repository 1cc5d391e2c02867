"""Settings: read once from ``HEADRACE_*`` by a command's entry point, then passed down; unknown ones are errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.errors import SettingsError

__all__ = ["Settings", "read_settings"]

PREFIX = "HEADRACE_"
NOT_OURS = {"HEADRACE_DATA"}  # where the tests' real input lies; no setting of the product


class Settings(BaseSettings):
    """Every setting of headrace. With no ``kafka`` and ``redis`` the embedded ones are used."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    home: Path = Field(Path(".headrace"), description="the one folder of the embedded runtime's data, logs, tables and models")
    cache: Path = Field(Path("~/.cache/headrace"), description="downloaded jars, shared by all homes of this user")
    kafka: str | None = Field(None, description="bootstrap servers of an external Kafka, e.g. broker-1:9092; unset: embedded")
    redis: SecretStr | None = Field(None, description="URL of an external Redis, e.g. redis://:secret@host:6379/0")
    workers: int = Field(1, ge=1, le=64, description="feature workers that `headrace up` starts")
    partitions: int = Field(4, ge=1, le=1024, description="partitions of each event topic when the catalogue creates it")
    replication: int = Field(1, ge=1, le=7, description="replicas of each topic when the catalogue creates it")
    time: Literal["live", "replay"] = Field(
        "live", description="live: the broker stamps arrival (LogAppendTime); replay: the publisher does, with simulated time"
    )
    redis_timeout_ms: int = Field(50, ge=1, le=60_000, description="how long scoring waits for Redis before it uses defaults")
    table_root: str | None = Field(None, description="folder or URL of the Delta tables; unset: <home>/tables")
    mlflow: str | None = Field(None, description="MLflow tracking URI; unset: sqlite in <home>")
    spark_master: str = Field("local[*]", description="Spark master URL")
    spark_memory: str = Field("1g", description="heap of the Spark driver, e.g. 1g")
    ready_file: Path | None = Field(None, description="a process writes its pid here once it works; set by the supervisor")

    @property
    def tables(self) -> str:
        return self.table_root or str(self.home.resolve() / "tables")

    @property
    def mlflow_uri(self) -> str:
        return self.mlflow or f"sqlite:///{self.home.resolve() / 'mlflow.db'}"

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
                            hint="`headrace doctor` lists every setting") from error
