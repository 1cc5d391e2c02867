"""The real Kafka as a child: one KRaft node, broker and controller in one, on two loopback ports."""

from __future__ import annotations

import base64
import socket
import subprocess
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from schemas.errors import RuntimeFault
from schemas.jars import class_archive, jar_folder, jars
from schemas.java import java_home
from schemas.settings import Settings
from schemas.topics import BROKER_MAX_BYTES
from services.runtime.supervisor import Process

__all__ = ["BRIEF", "answers", "kafka_process"]

# Serial: on two cores and half a gigabyte it starts 0.3 s sooner than G1 and leaves the second core to the workers. Few megabytes for
# what is young: collecting the stock forty stops the broker for 9 ms every 0.7 s at 1,000 events/s (docs/decisions/0042).
JVM = ("-Xms128m", "-Xmx512m", "-Xmn12m", "-XX:+UseSerialGC", "-Djava.awt.headless=true")
LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
           "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS")
BRIEF = ("-XX:TieredStopAtLevel=1",)
"""Of a JVM that is not to run for long: no second compiler."""
ASK_S = 1.0


def kafka_process(settings: Settings, home: Path, port: int, controller_port: int, options: Sequence[str] = ()) -> Process:
    """Prepare ``home``/kafka (jars, configuration, formatted storage) and say how to run the broker in it.

    ``options`` are further ones of its JVM.
    """
    folder = home / "kafka"
    folder.mkdir(parents=True, exist_ok=True)
    properties = folder / "server.properties"
    properties.write_text(_properties(folder / "data", port, controller_port))
    jars(settings, "kafka")
    archive = class_archive(settings, "kafka")
    mapped = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
    java = (str(java_home(settings) / "bin" / "java"), *JVM, *LOGGING, *mapped)
    classes = ("-cp", f"{jar_folder(settings, 'kafka')}/*")
    cluster = _format(folder / "data", properties, (*java, *BRIEF, *classes))
    return Process("kafka", (*java, *options, *classes, "kafka.Kafka", str(properties)), partial(_healthy, port, cluster),
                   start_s=60.0, stop_s=15.0)


def answers(bootstrap: str, timeout_s: float) -> str | None:
    """The cluster id that a metadata request to ``bootstrap`` returns; None when nobody answers in ``timeout_s``."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    try:
        metadata = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}).list_topics(timeout=timeout_s)
    except KafkaException:
        return None
    return metadata.cluster_id if metadata.brokers else None


def _healthy(port: int, cluster: str, pid: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), ASK_S).close()  # refused at once, where a client would wait
    except OSError:
        return False
    return answers(f"127.0.0.1:{port}", ASK_S) == cluster


def _format(data: Path, properties: Path, java: tuple[str, ...]) -> str:
    """Format the storage once; return the id of its cluster, by which we know our broker from another on its port."""
    meta = data / "meta.properties"
    if not meta.exists():
        cluster = base64.urlsafe_b64encode(b"h" + uuid.uuid4().bytes[1:]).decode().rstrip("=")  # never starts with a dash
        command = (*java, "kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster, "-c", str(properties))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode or not meta.exists():
            raise RuntimeFault(f"Kafka's storage in {data} cannot be formatted: {(done.stderr or done.stdout).strip()[-400:]}",
                               hint="`headrace doctor` looks at disk space and Java")
    lines = dict(line.partition("=")[::2] for line in meta.read_text().splitlines() if not line.startswith("#"))
    return lines["cluster.id"]


def _properties(data: Path, port: int, controller_port: int) -> str:
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data,
        "auto.create.topics.enable": "false",
        "message.max.bytes": BROKER_MAX_BYTES,
        "replica.fetch.max.bytes": BROKER_MAX_BYTES,
        "group.initial.rebalance.delay.ms": 0,
        # A killed broker may register again only when the session of its predecessor is over: 9 s by default.
        "broker.session.timeout.ms": 2000,
        "broker.heartbeat.interval.ms": 400,
        # Small, because one node on two cores: fewer partitions to open, threads to feed, buffers to hold.
        "num.network.threads": 2,
        "num.io.threads": 4,
        "log.cleaner.dedupe.buffer.size": 16 << 20,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())
