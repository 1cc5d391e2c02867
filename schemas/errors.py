"""The error tree: every error that headrace raises on purpose.

    HeadraceError
    ├── SettingsError          a setting is unknown, missing or contradictory
    ├── ContractError          a record breaks its contract (becomes a dead letter; has ``reason``)
    ├── DefinitionError        a view, service or model is declared wrongly
    ├── StoreError             the online store said no, or did not answer
    │   └── BelowFloorError    the history asked for was trimmed; it belongs to Delta
    ├── RefusedError           a request over HTTP is refused (has ``status`` and ``reason``)
    ├── LogError               Kafka refused, or did not answer
    ├── RuntimeFault           an embedded process cannot be started or died for good
    ├── JobError               a job over the tables cannot go on
    │   ├── CheckError         a training set breaks its rules (has ``checked``)
    │   ├── UnreadableError    a table is there that this process cannot read; Spark may
    │   └── FindingError       what is archived does not suffice to train or to judge a model
    └── BundleError            a model bundle is damaged, unsafe or does not fit

Messages are lower-case facts with values; ``hint`` says what to do. Foreign exceptions stop at the owner of their library.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BelowFloorError", "BundleError", "CheckError", "ContractError", "DefinitionError", "FindingError", "HeadraceError",
    "JobError", "LogError", "RefusedError", "RuntimeFault", "SettingsError", "StoreError", "UnreadableError",
]


class HeadraceError(Exception):
    """A fact and, where there is one, the way out. ``exit_code`` is what the command line returns."""

    exit_code = 1

    def __init__(self, fact: str, *, hint: str = "") -> None:
        super().__init__(fact)
        self.fact = fact
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.fact}; hint: {self.hint}" if self.hint else self.fact

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes as it is, whatever the arguments that its class takes."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[HeadraceError], args: tuple[Any, ...], facts: dict[str, Any]) -> HeadraceError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class SettingsError(HeadraceError):
    exit_code = 2


class ContractError(HeadraceError):
    """A record that breaks its contract; ``reason`` is a stable word such as ``not-json`` or ``clock-skew``."""

    exit_code = 3

    def __init__(self, reason: str, fact: str, *, hint: str = "") -> None:
        super().__init__(fact, hint=hint)
        self.reason = reason


class DefinitionError(HeadraceError):
    exit_code = 2


class StoreError(HeadraceError):
    exit_code = 4


class BelowFloorError(StoreError):
    pass


class RefusedError(HeadraceError):
    """``status`` is HTTP's, ``reason`` a stable word such as ``overloaded``; ``retry_s``: when it may be tried again."""

    exit_code = 9

    def __init__(self, status: int, reason: str, fact: str, *, hint: str = "", retry_s: int | None = None) -> None:
        super().__init__(fact, hint=hint)
        self.status = status
        self.reason = reason
        self.retry_s = retry_s


class LogError(HeadraceError):
    exit_code = 4


class RuntimeFault(HeadraceError):
    exit_code = 5


class JobError(HeadraceError):
    exit_code = 6


class CheckError(JobError):
    """A training set that breaks its rules; ``checked`` is the whole report."""

    exit_code = 8

    def __init__(self, fact: str, checked: object, *, hint: str = "") -> None:
        super().__init__(fact, hint=hint)
        self.checked = checked


class UnreadableError(JobError):
    pass


class FindingError(JobError):
    """Says something of the data, not of a machine: the same job on the same data finds it again."""


class BundleError(HeadraceError):
    exit_code = 7
