"""Scores events on a device with the model, the features and the events of its own entities that lie beside this file.

    python scorer.py event.json                        the score of each event in the file; nothing is changed
    python scorer.py append event.json                 keep the events for later scores; --source outcomes for another topic's
    python scorer.py check                             verify everything and say what is here

It needs Python 3.11, numpy and onnxruntime; with ``cryptography`` it also verifies who signed the model. `headrace export --edge`
copies this file as it is, beside the bundle, features.json, request_features.py, events.bin and edge.json (their hashes). Features
are those of headrace to the last bit: exact integers, one rounding at the end (docs/edge.md). An entity that the device does not hold, or
whose history was trimmed, is told as degraded. Over 300 lines, on purpose: one file travels, and whoever runs it can read it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

PURPOSE = b"headrace bundle manifest v1\0"
MAGIC = b"headrace-events-v1\n"
MAX_BYTES = {"model.onnx": 64 << 20, "trees.json": 256 << 20, "events.bin": 1 << 30}
SMALL_FILE = 4 << 20
GOLDEN_TOLERANCE = 1e-6
HASHED = ("scorer.py", "features.json", "request_features.py", "trusted.pub", "bundle/manifest.json")
EXPLAINING = ("contributions.py", "trees.json")
WHITESPACE = re.compile(r"[ \t\n\r]*")


class EdgeError(Exception):
    """A fact and the way out."""

    def __init__(self, fact: str, hint: str) -> None:
        super().__init__(f"{fact}; hint: {hint}")


class Device:
    """A verified export: ``score`` and ``append``."""

    def __init__(self, folder: Path) -> None:
        """Raises EdgeError with the first thing that does not hold."""
        self.folder = folder
        self.hashes = read_json(folder / "edge.json")
        if set(self.hashes) - set(EXPLAINING) != set(HASHED):
            raise EdgeError("edge.json does not have the hashes of this folder", "export scorer and bundle together")
        own = {name: checked_file(folder / name, digest) for name, digest in self.hashes.items()}
        self.manifest, files, self.signed_by = verified_bundle(folder / "bundle", own["bundle/manifest.json"], own["trusted.pub"])
        self.edge: dict[str, Any] = json.loads(own["features.json"])
        self.names: list[str] = self.manifest["inputs"]
        if (self.names, self.manifest["service_hash"]) != (self.edge["names"], self.edge["service_hash"]):
            raise EdgeError("features.json and the bundle are of different features", "export them again, together")
        defaults = self.manifest["defaults"]
        self.defaults = np.array([defaults.get(name, np.nan) for name in self.names])
        self.code = module("request_features", own["request_features.py"])
        self.explain = explainer(own) if set(EXPLAINING) <= set(own) else None
        self.run = session(files["model.onnx"], len(self.names))
        golden = json.loads(files["golden.json"])
        rows = np.array([[np.nan if x is None else x for x in row] for row in golden["inputs"]])
        if not np.max(np.abs(self.run(rows) - np.array(golden["outputs"]))) <= GOLDEN_TOLERANCE:
            raise EdgeError("the model's outputs differ from its golden ones", "another onnxruntime? export again")

    def score(self, event: dict[str, Any], sets: dict[tuple[str, str], Any]) -> dict[str, Any]:
        row, degraded = self.vector(event, sets)
        score = float(self.run(row)[0])
        features = {name: None if math.isnan(x) else x for name, x in zip(self.names, row[0].tolist(), strict=True)}
        answer = {"event_id": event["event_id"], "model": self.manifest["model"], "model_version": self.manifest["version"],
                  "score": score, "threshold": self.manifest["threshold"], "alert": score >= self.manifest["threshold"],
                  "degraded": degraded, "features": features}
        if self.explain is not None:
            base, parts = self.explain(row[0])
            answer |= {"base": base, "contributions": dict(zip(self.names, parts.tolist(), strict=True))}
        return answer

    def vector(self, event: dict[str, Any], sets: dict[tuple[str, str], Any]) -> tuple[Any, list[str]]:
        """float64[1, F] at the event's own time, and the views that had to do without their history."""
        matrix, degraded, at = self.defaults.copy().reshape(1, -1), [], 0
        for view in self.edge["views"]:
            place, at = slice(at, at + len(view["features"])), at + len(view["features"])
            records = sets.get((view["name"], event[view["entity"]]))
            current = self.record(view, event) if view["source"] == self.edge["source"] else None
            values = None if records is None else view_values(view, records, event["event_time"], current)
            if records is not None:  # else the defaults stand
                matrix[0, place] = np.nan if values is None else values
            if values is None:
                degraded.append(view["name"])
        columns = {name: np.array([event[name]], np.int64) for name in self.edge["event_columns"]}
        x = {**columns, **{name: matrix[:, i] for i, name in enumerate(self.names)}}
        for i, name in enumerate(self.names[at:], at):
            matrix[:, i] = self.code.FEATURES[name](x)
        return matrix, degraded

    def append(self, events: list[dict[str, Any]], source: str, arrival_ms: int) -> dict[str, int]:
        """Keep what the device's entities need of ``events``, which arrived at ``arrival_ms``; drop what no score can need any more."""
        told = {"kept": 0, "late": 0, "not_held": 0, "known": 0}
        with locked(self.folder / "events.lock"):
            clock_ms, sets = read_events(self.folder / "events.bin", self.edge["views"])
            now_ms = max(clock_ms, arrival_ms)
            for view in (view for view in self.edge["views"] if view["source"] == source):
                for event in events:
                    key, row = (view["name"], event[view["entity"]]), np.array([self.record(view, event)], np.int64)
                    fate = admitted(view, event, row, sets.get(key), arrival_ms)
                    told[fate] += 1
                    if fate == "kept":
                        sets[key] = np.concatenate((sets[key], row))
            by_name = {view["name"]: view for view in self.edge["views"]}
            kept = {key: trimmed(by_name[key[0]], records, now_ms - self.edge["scored_lateness_ms"]) for key, records in sets.items()}
            write_events(self.folder / "events.bin", now_ms, kept)
        return told

    def record(self, view: dict[str, Any], event: dict[str, Any]) -> list[int]:
        """The event's words in ``view``: time, id hash, columns."""
        derived = self.code.DERIVED.get(view["source"], {})
        words = [event["event_time"], signed(xxh3(event["event_id"].encode()) or 1)]
        for column in view["columns"]:
            field = column["field"]
            value = derived[field](SimpleNamespace(**event)) if field in derived else event[field]
            words.append(signed(xxh3(value.encode())) if column["hashed"] else int(value))
        return words

    def read_sets(self) -> dict[tuple[str, str], Any]:
        return read_events(self.folder / "events.bin", self.edge["views"])[1]


# What a feature is: headrace's kernel in numpy, one read at a time.

def view_values(view: dict[str, Any], records: Any, t: int, current: list[int] | None) -> list[float] | None:
    """The features of ``view`` at ``t`` over int64[m, words]; ``current`` is the scored event where it is of the view's source.

    None where records that a window needs were trimmed.
    """
    edge = t - view["delay_ms"]
    left = edge - max(feature["window_ms"] for feature in view["features"])
    if (records[records[:, 1] == 0, 0] > left).any():
        return None
    rows = records[(records[:, 1] != 0) & (records[:, 0] > left) & (records[:, 0] <= edge)]
    if current is not None and view["include_current"] and left < current[0] <= edge:
        rows = np.concatenate((rows, np.array([current], np.int64)))
    elif current is not None and not view["include_current"]:
        rows = rows[(rows[:, 0] != current[0]) | (rows[:, 1] != current[1])]
    columns = [column["field"] for column in view["columns"]]
    first = sorted(range(len(columns)), key=lambda i: not view["columns"][i]["revision"])  # of copies the highest of these wins
    rows = rows[np.lexsort([*(rows[:, 2 + i] for i in reversed(first)), rows[:, 1], rows[:, 0]])]
    last_of_copies = np.ones(len(rows), bool)
    last_of_copies[:-1] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
    rows = rows[last_of_copies]
    values = []
    for feature in view["features"]:
        window = rows[np.searchsorted(rows[:, 0], edge - feature["window_ms"], side="right"):]
        at = [columns.index(feature[name]) if feature[name] is not None else -1 for name in ("column", "denominator")]
        scales = [view["columns"][i]["scale"] if i >= 0 else 1 for i in at]
        values.append(fold(feature["function"], window, 2 + at[0], 2 + at[1], scales, t, current))
    return values


def fold(function: str, rows: Any, column: int, denominator: int, scales: list[int], t: int, current: list[int] | None) -> float:
    """One feature over sorted rows without copies."""
    n, x, scale = len(rows), rows[:, column], float(scales[0])
    if function == "count":
        return float(n)
    if function == "sum":
        return float(int(x.sum())) / scale
    if function == "count_distinct":
        return float(len(np.unique(x)))
    if function == "count_same":
        return math.nan if current is None else float(np.count_nonzero(x == current[column]))
    if n == 0:
        return math.nan
    if function == "mean":
        return float(int(x.sum())) / float(n * scales[0])
    if function in ("min", "max"):
        return float(int(x.min() if function == "min" else x.max())) / scale
    if function == "last":
        return float(int(x[-1])) / scale
    if function == "time_since_last":
        return float(t - int(rows[-1, 0])) / 1000.0
    if function == "std":
        exact = x.tolist()
        return math.sqrt(float(n * sum(v * v for v in exact) - sum(exact) ** 2)) / float(n * scales[0])
    if function == "ratio":
        below = int(rows[:, denominator].sum())
        return (float(int(x.sum())) / scale) / (float(below) / float(scales[1])) if below else math.nan
    raise EdgeError(f"unknown function {function!r}", "export again with this headrace")


# Events: what comes in, and the file of those that are kept.

def checked(contract: dict[str, Any], value: Any, where: str) -> dict[str, Any]:
    """``value`` as an event of ``contract`` (JSON Schema), defaults filled in. Raises EdgeError, never with a value in it."""
    if not isinstance(value, dict):
        raise EdgeError(f"{where} is no JSON object", "one object an event, as the contract has it")
    fields = contract["properties"]
    for name in [*(name for name in contract["required"] if name not in value), *(name for name in value if name not in fields)]:
        raise EdgeError(f"{where}: field {name!r} is {'missing' if name in fields else 'unknown'}", f"an event has {', '.join(fields)}")
    for name, told in value.items():
        field = fields[name]
        if field["type"] == "string":
            right = isinstance(told, str) and field.get("minLength", 0) <= len(told) <= field.get("maxLength", 512) and encodable(told)
        elif field["type"] == "integer":
            right = type(told) is int and field["minimum"] <= told <= field["maximum"]
        else:
            right = type(told) is bool
        if not right:
            raise EdgeError(f"{where}: field {name!r} is no {field['type']} within its bounds", f"the contract says {json.dumps(field)}")
    return {**{name: field["default"] for name, field in fields.items() if "default" in field}, **value}


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def read_values(path: str) -> Iterator[Any]:
    """The JSON values in a file (- for standard input), one after the other."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        at, decoder = 0, json.JSONDecoder()
        while (at := WHITESPACE.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches nothing, too
            value, at = decoder.raw_decode(text, at)
            yield value
    except (OSError, ValueError, RecursionError) as error:
        raise EdgeError(f"{path} holds no events: {error}", "JSON objects in UTF-8, one after the other") from error


def read_events(path: Path, views: list[dict[str, Any]]) -> tuple[int, dict[tuple[str, str], Any]]:
    """The arrival time up to which events were kept, and int64[m, words] of each (view, entity) that the device holds."""
    words = {view["name"]: 2 + len(view["columns"]) for view in views}
    magic, _, rest = read_plain(path).partition(b"\n")
    header, _, data = rest.partition(b"\n")
    try:
        told = json.loads(header)
        clock_ms, sets = int(told["clock_ms"]), {}
        for name, entity, n in told["sets"]:
            sets[name, entity] = np.frombuffer(data[:8 * n * words[name]], "<i8").reshape(n, words[name])
            data = data[8 * n * words[name]:]
    except (ValueError, KeyError, TypeError) as error:
        raise EdgeError(f"{path} is damaged: {error!r}", "export the entities again") from error
    if magic + b"\n" != MAGIC or data:
        raise EdgeError(f"{path} is no file of events", "export the entities again")
    return clock_ms, sets


def write_events(path: Path, clock_ms: int, sets: dict[tuple[str, str], Any]) -> None:
    """In one step: who reads sees all of it or what was before."""
    header = {"clock_ms": clock_ms, "sets": [[name, entity, len(records)] for (name, entity), records in sets.items()]}
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(MAGIC + json.dumps(header).encode() + b"\n")
        file.writelines(np.ascontiguousarray(records, "<i8").tobytes() for records in sets.values())
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def admitted(view: dict[str, Any], event: dict[str, Any], row: Any, held: Any, arrival_ms: int) -> str:
    """What becomes of an event: a pure function of it, its arrival and what is held. Raises EdgeError where it lies in the future."""
    if event["event_time"] > arrival_ms + view["max_skew_ms"]:
        raise EdgeError(f"event {event['event_id']!r} lies in the future of its arrival", "set the clocks, or --arrival")
    if held is None:
        return "not_held"
    if arrival_ms - event["event_time"] > view["allowed_lateness_ms"]:
        return "late"
    return "known" if (held == row).all(axis=1).any() else "kept"


def trimmed(view: dict[str, Any], records: Any, earliest_read_ms: int) -> Any:
    """Without what no score from ``earliest_read_ms`` on can need; a record with id 0 says up to where that is."""
    longest_ms = max(feature["window_ms"] for feature in view["features"])
    floor = earliest_read_ms - view["max_skew_ms"] - view["delay_ms"] - longest_ms
    kept = records[records[:, 0] > floor]
    if len(kept) == len(records):
        return records
    mark = np.zeros((1, records.shape[1]), np.int64)
    mark[0, 0] = floor
    return np.concatenate((mark, kept))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# The bundle: verified before it is opened.

def verified_bundle(bundle: Path, data: bytes, public: bytes) -> tuple[dict[str, Any], dict[str, bytes], str | None]:
    """Manifest, files, and the key that signed it (None: this device has no ``cryptography`` to tell)."""
    signed_by = check_signature(data, read_plain(bundle / "manifest.sig"), public)
    manifest: dict[str, Any] = json.loads(data)
    listed = set(manifest["files"])
    if listed != {"model.onnx", "golden.json", "model_card.md"} or set(os.listdir(bundle)) != {*listed, "manifest.json", "manifest.sig"}:
        raise EdgeError("the bundle has files that its manifest does not list", "export it again")
    return manifest, {name: checked_file(bundle / name, digest) for name, digest in manifest["files"].items()}, signed_by


def check_signature(manifest: bytes, line: bytes, public: bytes) -> str | None:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        return None
    try:
        key: Any = load_pem_public_key(public)
        identity = hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]
        kind, told, signature = line.decode().split()
        if (kind, told) != ("headrace-ed25519", identity):
            raise EdgeError(f"the bundle is signed by {told}, trusted is {identity}", "export it again")
        key.verify(bytes.fromhex(signature), PURPOSE + manifest)
    except (ValueError, InvalidSignature) as error:
        raise EdgeError("the manifest is not what the trusted key signed", "it was changed: export it again") from error
    return identity


def checked_file(path: Path, digest: str) -> bytes:
    data = read_plain(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise EdgeError(f"{path} is damaged: its sha256 is not the one that was exported", "export it again")
    return data


def read_plain(path: Path) -> bytes:
    """The bytes of a regular file of bounded size; a link is not followed."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status, limit = os.fstat(file.fileno()), MAX_BYTES.get(path.name, SMALL_FILE)
            if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                raise EdgeError(f"{path} is no plain file of at most {limit:,} bytes", "export it again")
            return file.read(limit)
    except OSError as error:
        raise EdgeError(f"{path} cannot be read: {error.strerror}", "export it again") from error


def module(name: str, source: bytes) -> Any:
    """Code that was exported with this scorer and verified with it."""
    made = ModuleType(name)
    sys.modules[name] = made  # dataclasses look there
    exec(compile(source, f"{name}.py", "exec"), made.__dict__)
    return made


def explainer(own: dict[str, bytes]) -> Callable[[Any], tuple[float, Any]]:
    """A vector's base and contributions in log-odds, which add up to the score's."""
    code, told = module("contributions", own["contributions.py"]), json.loads(own["trees.json"])
    leaves = tuple(code.Leaf(value, tuple(code.Split(*split) for split in path)) for value, path in told["leaves"])
    trees = code.Trees(leaves, told["base"], told["width"], told["counted"])
    return lambda vector: code.contributions(trees, vector)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(read_plain(path))
    except ValueError as error:
        raise EdgeError(f"{path} is no JSON: {error}", "export it again") from error
    return value


def session(onnx: bytes, width: int) -> Any:
    """float64[n, width] -> probability float64[n]; one thread, set up as headrace's scorers are."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3
    opened = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    if [item.name for item in opened.get_inputs()] != ["input"] or opened.get_inputs()[0].shape[1] != width:
        raise EdgeError("model.onnx does not take the features of its manifest", "export it again")

    def run(matrix: Any) -> Any:
        rows = np.ascontiguousarray(matrix, dtype=np.float32)
        return opened.run(["probabilities"], {"input": rows})[0][:, 1].astype(np.float64)

    return run


# xxh3-64 with seed 0, as the algorithm's specification has it (xxHash, doc/xxhash_spec.md), of up to 1,024 bytes: ids have 512 at most.

MASK = (1 << 64) - 1
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364ea"
    "c5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")
P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def u64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at:at + 8], "little")


def u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at:at + 4], "little")


def folded(a: int, b: int) -> int:
    return (a * b & MASK) ^ (a * b >> 64)


def mixed(data: bytes, at: int, key: int) -> int:
    return folded(u64(data, at) ^ u64(SECRET, key), u64(data, at + 8) ^ u64(SECRET, key + 8))


def avalanche(h: int) -> int:
    h &= MASK
    h = (h ^ h >> 37) * 0x165667919E3779F9 & MASK
    return h ^ h >> 32


def avalanche_64(h: int) -> int:
    h = (h ^ h >> 33) * P64[1] & MASK
    h = (h ^ h >> 29) * P64[2] & MASK
    return h ^ h >> 32


def xxh3(data: bytes) -> int:
    n = len(data)
    if n == 0:
        return avalanche_64(u64(SECRET, 56) ^ u64(SECRET, 64))
    if n <= 3:
        h = data[0] << 16 | data[n // 2] << 24 | data[n - 1] | n << 8
        return avalanche_64(h ^ u32(SECRET, 0) ^ u32(SECRET, 4))
    if n <= 8:
        h = (u32(data, n - 4) + (u32(data, 0) << 32)) ^ u64(SECRET, 8) ^ u64(SECRET, 16)
        h ^= (h << 49 & MASK | h >> 15) ^ (h << 24 & MASK | h >> 40)
        h = h * 0x9FB21C651E98DF25 & MASK
        h = (h ^ (h >> 35) + n) * 0x9FB21C651E98DF25 & MASK
        return h ^ h >> 28
    if n <= 16:
        low = u64(data, 0) ^ u64(SECRET, 24) ^ u64(SECRET, 32)
        high = u64(data, n - 8) ^ u64(SECRET, 40) ^ u64(SECRET, 48)
        return avalanche(n + int.from_bytes(low.to_bytes(8, "little"), "big") + high + folded(low, high))
    if n <= 128:
        pairs = range((n - 1) // 32, -1, -1)
        return avalanche(n * P64[0] + sum(mixed(data, 16 * i, 32 * i) + mixed(data, n - 16 * (i + 1), 32 * i + 16) for i in pairs))
    if n <= 240:
        h = avalanche(n * P64[0] + sum(mixed(data, 16 * i, 16 * i) for i in range(8)))
        return avalanche(h + sum(mixed(data, 16 * i, 16 * i - 125) for i in range(8, n // 16)) + mixed(data, n - 16, 119))
    lanes = [P32[2], P64[0], P64[1], P64[2], P64[3], P32[1], P64[4], P32[0]]
    stripes = [(64 * i, 8 * i) for i in range((n - 1) // 64)]
    for at, key in [*stripes, (n - 64, 121)]:
        for lane in range(8):
            word = u64(data, at + 8 * lane)
            keyed = word ^ u64(SECRET, key + 8 * lane)
            lanes[lane ^ 1] = lanes[lane ^ 1] + word & MASK
            lanes[lane] = lanes[lane] + (keyed & 0xFFFFFFFF) * (keyed >> 32) & MASK
    pairs_of_lanes = (folded(lanes[i] ^ u64(SECRET, 11 + 8 * i), lanes[i + 1] ^ u64(SECRET, 19 + 8 * i)) for i in range(0, 8, 2))
    return avalanche(n * P64[0] + sum(pairs_of_lanes))


def signed(word: int) -> int:
    """The same 64 bits as int64."""
    return word - (1 << 64) if word >> 63 else word


def main(words: list[str]) -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="scorer.py", epilog="example: python scorer.py event.json")
    parser.add_argument("words", nargs="+", metavar="[append] FILE | check", help="files with JSON events, - for standard input")
    parser.add_argument("--source", help="append: the topic that the events are of; default: the one that is scored")
    parser.add_argument("--arrival", type=int, metavar="MS", help="append: when they arrived, UTC ms; default: this device's clock")
    asked = parser.parse_intermixed_args(words)
    try:
        device = Device(Path(__file__).resolve().parent)
        action, files = (asked.words[0], asked.words[1:]) if asked.words[0] in ("append", "check") else ("score", asked.words)
        source = (asked.source or device.edge["source"]) if action == "append" else device.edge["source"]
        if source not in device.edge["contracts"]:
            raise EdgeError(f"nothing here is made of {source!r}", f"one of {', '.join(device.edge['contracts'])}")
        sets = device.read_sets()
        if action == "check":
            held = [{"view": view, "entity": entity, "records": len(records)} for (view, entity), records in sets.items()]
            print(json.dumps({"model": device.manifest["model"], "version": device.manifest["version"], "signed_by": device.signed_by,
                              "manifest_sha256": device.hashes["bundle/manifest.json"], "held": held,
                              "start_ms": round(1000 * (time.perf_counter() - began), 1)}))
        events = [checked(device.edge["contracts"][source], value, file) for file in files for value in read_values(file)]
        if action == "append":
            print(json.dumps(device.append(events, source, time.time_ns() // 1_000_000 if asked.arrival is None else asked.arrival)))
        for event in events if action == "score" else ():
            print(json.dumps(device.score(event, sets)))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
