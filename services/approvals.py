"""Who may release a version: the gates alone where its risk class is ``automatic``, else only when a person has approved what they saw.

An approval is bound to the hash of the evidence, so other evidence needs another one, and it is not the trainer's own. The evidence is what
the gates wrote beside the bundle (``<models>/<model>/evidence/<version>.json``); of a version that no gate has seen, its signed manifest.
"""

from __future__ import annotations

import getpass
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from feature_repo.bundle import bundle_folder, read_bundle
from feature_repo.manifest import MANIFEST_FILE, read_plain
from schemas.approvals import APPROVAL, APPROVALS, Approval
from schemas.errors import SettingsError
from schemas.monitoring import derived_id
from schemas.settings import Settings
from services.control_log import ControlLog
from services.release_machine import Refusal

__all__ = ["Seen", "acting_person", "approve", "missing_approval", "read_approvals", "seen_of", "unapproved"]


@dataclass(frozen=True)
class Seen:
    """What there is to approve of a version. ``trainer`` None: its bundle does not say who trained it."""

    model: str
    version: str
    evidence: str
    trainer: str | None


def unapproved(risk_class: Literal["automatic", "person"], seen: Seen, approvals: Iterable[Approval]) -> Refusal | None:
    """Why the version may not be released; None where it may. Pure."""
    if risk_class == "automatic":
        return None
    name = f"{seen.model}@{seen.version}"
    own = [each for each in approvals if (each.model, each.version) == (seen.model, seen.version)]
    valid = [each for each in own if each.evidence == seen.evidence]
    hint = f"headrace models approve {seen.model} {seen.version} --evidence {seen.evidence} --why '...'"
    if any(each.by != seen.trainer for each in valid):
        return None
    if valid:
        return Refusal(f"{name} is approved by {seen.trainer} only, who trained it", f"somebody else: {hint}")
    if own:
        return Refusal(f"{name} was approved on evidence {own[-1].evidence}, which has changed since", hint)
    return Refusal(f"{name} is not approved, and the risk class of {seen.model} asks for a person", hint)


def seen_of(settings: Settings, model: str, version: str) -> Seen:
    """Raises BundleError where there is no such version, its signature does not hold, or its evidence was changed."""
    from jobs.evidence import read_evidence

    folder = bundle_folder(settings.models, model, version)
    manifest, _ = read_bundle(folder, settings.key_folder)
    kept = read_evidence(settings.models, model, version)
    evidence = kept.evidence_hash if kept is not None else hashlib.sha256(read_plain(folder, MANIFEST_FILE)).hexdigest()
    return Seen(model, version, evidence, manifest.data.get("trained_by"))


def missing_approval(settings: Settings, kafka: str, risk_class: Literal["automatic", "person"], model: str,
                     version: str) -> Refusal | None:
    """As ``unapproved``, of what is on disk and on the topic now."""
    if risk_class == "automatic":
        return None
    return unapproved(risk_class, seen_of(settings, model, version), read_approvals(kafka))


def read_approvals(kafka: str) -> list[Approval]:
    """All of them, oldest first."""
    log = ControlLog(kafka)
    try:
        return [approval for _, approval in log.records(APPROVALS, Approval)]
    finally:
        log.close()


def approve(settings: Settings, kafka: str, model: str, version: str, evidence: str, why: str, at_ms: int) -> Approval | Refusal:
    """Put the acting person's approval on record; the same again is the same record's id."""
    seen, person = seen_of(settings, model, version), acting_person(settings)
    if evidence != seen.evidence:
        return Refusal(f"the evidence of {model}@{version} is {seen.evidence}, not {evidence}", "look at it again: `headrace models show`")
    if person == seen.trainer:
        return Refusal(f"{person} trained {model}@{version}", "somebody else approves it")
    made = Approval(derived_id(model, version, evidence, person), model, version, evidence, person, why, at_ms)
    APPROVAL.decode(msgspec.json.encode(made))
    log = ControlLog(kafka)
    try:
        log.publish(APPROVALS, made, at_ms)
    finally:
        log.close()
    return made


def acting_person(settings: Settings) -> str:
    """Raises SettingsError where nobody is named."""
    try:
        return settings.person or getpass.getuser()
    except (KeyError, OSError) as error:
        raise SettingsError("it is not known who acts", hint="set HEADRACE_PERSON") from error
