"""A person's word on a version: who looked at which evidence, and says that it may be released."""

from __future__ import annotations

import msgspec

from schemas.contracts import Contract
from schemas.records import Id, TimeMs

__all__ = ["APPROVAL", "APPROVALS", "Approval"]

APPROVALS = "model-approvals"


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``evidence`` is the hash of what was seen: of other evidence this says nothing. ``by`` is a person; ``at_ms`` stream time."""

    approval_id: Id
    model: Id
    version: Id
    evidence: Id
    by: Id
    why: str
    at_ms: TimeMs


APPROVAL = Contract("approval", 1, Approval, "headrace", "model", "full", frozenset({"by"}),
                    "A person approves a version, on evidence that is named.")
