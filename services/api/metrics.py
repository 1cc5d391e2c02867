"""What the API counts, in Prometheus' text format. Names and meanings are declared here and nowhere else."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

__all__ = ["Metrics"]

BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
HELP = {
    "headrace_api_requests_total": ("counter", "Requests by path and status."),
    "headrace_api_request_seconds": ("histogram", "From the request's head to the end of its answer, by path."),
    "headrace_api_scored_total": ("counter", "Events scored, by model."),
    "headrace_api_degraded_total": ("counter", "Events scored without their whole history, by model."),
    "headrace_api_batches_total": ("counter", "Batches that they were scored in, by model."),
    "headrace_api_predictions_published_total": ("counter", "Predictions that Kafka has acknowledged."),
    "headrace_api_predictions_spooled_total": ("counter", "Predictions that had to wait on disk."),
    "headrace_api_predictions_waiting_bytes": ("gauge", "Predictions that Kafka has not acknowledged, in memory and on disk."),
    "headrace_api_spooling": ("gauge", "1 while Kafka does not answer."),
    "headrace_api_store_up": ("gauge", "1 while the online store answers, by model."),
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._seconds: dict[str, tuple[list[int], list[float]]] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        self._counts["headrace_api_requests_total", (("path", path), ("status", str(status)))] += 1
        buckets, total = self._seconds.setdefault(path, ([0] * (len(BOUNDS_S) + 1), [0.0]))
        buckets[bisect_left(BOUNDS_S, seconds)] += 1
        total[0] += seconds

    def count(self, name: str, n: int, model: str) -> None:
        self._counts[name, (("model", model),)] += n

    def text(self, now: Iterable[tuple[str, Labels, float]]) -> str:
        """All of it; ``now`` are values that are asked for when they are told."""
        lines: dict[str, list[str]] = {name: [] for name in HELP}
        for (name, labels), value in sorted(self._counts.items()):
            lines[name].append(f"{name}{_labels(labels)} {value}")
        for name, labels, number in now:
            lines[name].append(f"{name}{_labels(labels)} {number:g}")
        name = "headrace_api_request_seconds"
        for path, (buckets, total) in sorted(self._seconds.items()):
            seen = 0
            for bound, n in zip((*map(str, BOUNDS_S), "+Inf"), buckets, strict=True):
                seen += n
                lines[name].append(f"{name}_bucket{_labels((('path', path), ('le', bound)))} {seen}")
            lines[name] += [f"{name}_sum{_labels((('path', path),))} {total[0]:g}", f"{name}_count{_labels((('path', path),))} {seen}"]
        return "".join(f"# HELP {name} {HELP[name][1]}\n# TYPE {name} {HELP[name][0]}\n" + "".join(line + "\n" for line in of_name)
                       for name, of_name in lines.items())


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""
