"""``headrace models list|show|compare|approve``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from services.commands import add_command, add_group, show
from services.words import stated

if TYPE_CHECKING:
    from pathlib import Path

    from feature_repo.manifest import Manifest
    from feature_repo.models import ModelSpec
    from schemas.releases import Chain
    from schemas.settings import Settings
    from services.commands import Subparsers


def register(subparsers: Subparsers) -> None:
    actions = add_group(subparsers, "models", help="versions of models: which there are, what each was made from, how they compare",
                        example="headrace models list")
    parser = add_command(actions, "list", list_, example="headrace models list --json", help="all versions, and what each is: champion, "
                         "previous, canary, shadow, challenger")
    parser.add_argument("--model", help="only of this one (default: all that are on)")
    parser = add_command(actions, "show", show_one, example="headrace models show fraud@3",
                         help="one version's manifest, model card and what its gates saw")
    parser.add_argument("version", metavar="MODEL@VERSION")
    parser = add_command(actions, "compare", compare, example="headrace models compare fraud@2 fraud@3",
                         help="what two versions were made from, and what each scored on its own test days")
    parser.add_argument("versions", nargs=2, metavar="MODEL@VERSION")
    parser.add_argument("--shadow", action="store_true", help="on events that both scored, one of them in shadow: exact pairs, and what "
                        "became known of them")
    parser = add_command(actions, "approve", approve_one, example="headrace models approve fraud 3 --evidence 5f2c... --why reviewed",
                         help="say that a version may be released on the evidence that is named")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("version", metavar="VERSION")
    parser.add_argument("--evidence", required=True, metavar="HASH", help="of what was looked at, as `headrace models show` has it")
    parser.add_argument("--why", required=True, type=stated, help="goes on the record")


def list_(arguments: argparse.Namespace) -> None:
    from feature_repo.use_cases import find_model, models
    from schemas.settings import read_settings

    settings = read_settings()
    wanted = [find_model(settings, arguments.model)] if arguments.model else models(settings)
    found = [each for spec in wanted for each in _versions(settings, spec)]
    width = max((len(each["state"]) for each in found), default=0)
    lines = [f"{'version':<14}{'state':<{width + 2}}{'trained on':<26}{'auc':>8}{'avg precision':>15}  features"]
    lines += [f"{each['model'] + '@' + each['version']:<14}{each['state']:<{width + 2}}{'..'.join(each['train']):<26}"
              f"{_figure(each, 'auc'):>8}{_figure(each, 'average_precision'):>15}  {each['service_hash']}" for each in found]
    show(arguments, found, "\n".join(lines) if found else "no model yet: `headrace train` makes one")


def show_one(arguments: argparse.Namespace) -> None:
    import msgspec

    from feature_repo.manifest import CARD_FILE
    from jobs.evidence import gate_card, read_evidence
    from schemas.settings import read_settings
    from services.approvals import seen_of

    settings = read_settings()
    folder, manifest = _read(settings, arguments.version)
    seen = read_evidence(settings.models, manifest.model, manifest.version)
    card = (folder / CARD_FILE).read_text() + ("" if seen is None else "\n" + gate_card(seen))
    evidence = seen_of(settings, manifest.model, manifest.version).evidence
    live = _live(settings, _chain(settings), manifest.model) == manifest.version
    show(arguments, {**msgspec.to_builtins(manifest), "live": live, "evidence": evidence,
                     "gates": None if seen is None else msgspec.to_builtins(seen)},
         f"{card}\nEvidence {evidence}: `headrace models approve` names it.")


def compare(arguments: argparse.Namespace) -> None:
    import msgspec

    from schemas.settings import read_settings

    settings = read_settings()
    if arguments.shadow:
        return _compare_pairs(arguments, settings)
    first, second = (msgspec.to_builtins(_read(settings, version)[1]) for version in arguments.versions)
    different = {name: [first[name], second[name]] for name in first if first[name] != second[name] and name not in ("files", "metrics")}
    metrics = {name: [first["metrics"].get("model", {}).get(name), second["metrics"].get("model", {}).get(name)]
               for name in first["metrics"].get("model", {})}
    lines = [f"{'':<24}{arguments.versions[0]:>22}{arguments.versions[1]:>22}"]
    lines += [f"{name:<24}{_text(a):>22}{_text(b):>22}" for name, (a, b) in metrics.items()]
    lines += [f"{name}: {_text(a)} -> {_text(b)}" for name, (a, b) in different.items()]
    lines.append("each on its own test days; the same rows are compared by the gates of a retrain")
    show(arguments, {"metrics": metrics, "different": different}, "\n".join(lines))


def _compare_pairs(arguments: argparse.Namespace, settings: Settings) -> None:
    from feature_repo.use_cases import find_model
    from schemas.errors import SettingsError
    from services.runtime.endpoints import endpoints
    from services.shadow_report import compare_pairs, lines, read_pairs

    names = [_parts(version) for version in arguments.versions]
    (model, first), (other, second) = names
    if model != other or first == second:
        raise SettingsError(f"{' and '.join(arguments.versions)} have no pairs", hint="name two versions of one model")
    pairs, matured = read_pairs(settings, endpoints(settings), find_model(settings, model), first, second)
    for version in arguments.versions if not pairs else ():
        _read(settings, version)  # or there is no such version, which is why
    facts = {"model": model, **compare_pairs(pairs, matured, first, second)}
    show(arguments, facts, "\n".join(lines(facts)))


def _parts(text: str) -> tuple[str, str]:
    from schemas.errors import SettingsError

    model, _, version = text.partition("@")
    if not model or not version:
        raise SettingsError(f"{text!r} names no version", hint="write fraud@3; `headrace models list` says which there are")
    return model, version


def approve_one(arguments: argparse.Namespace) -> None:
    import msgspec

    from feature_repo.use_cases import find_model
    from schemas.errors import JobError
    from schemas.settings import read_settings
    from services.approvals import approve
    from services.release_machine import Refusal
    from services.releasing import now_ms
    from services.runtime.endpoints import endpoints

    settings = read_settings()
    at = endpoints(settings)
    model = find_model(settings, arguments.model).name
    made = approve(settings, at.kafka, model, arguments.version, arguments.evidence, arguments.why, now_ms(settings, at))
    if isinstance(made, Refusal):
        raise JobError(made.fact, hint=made.hint)
    show(arguments, msgspec.to_builtins(made), f"{model}@{made.version} is approved by {made.by} on evidence {made.evidence}")


def _folders(settings: Settings, model: str) -> list[Path]:
    from feature_repo.manifest import MANIFEST_FILE

    found = [path.parent for path in (settings.models / model).glob(f"*/{MANIFEST_FILE}") if not path.parent.name.startswith(".")]
    return sorted(found, key=lambda folder: (len(folder.name), folder.name))


def _versions(settings: Settings, spec: ModelSpec) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from services.shadow_list import maturity_ms
    from services.standing import standings

    folders, chain = _folders(settings, spec.name), _chain(settings)
    live = _live(settings, chain, spec.name)
    told = standings(chain, spec.name, [folder.name for folder in folders], live, maturity_ms(spec))
    return [{**_facts(folder), "live": folder.name == live, "state": str(told[folder.name]), "standing": asdict(told[folder.name])}
            for folder in folders]


def _chain(settings: Settings) -> Chain:
    """Empty where no engines run."""
    from schemas.errors import RuntimeFault
    from schemas.releases import Chain
    from services.releasing import read_chain
    from services.runtime.endpoints import kafka_endpoint

    try:
        return read_chain(kafka_endpoint(settings))
    except RuntimeFault:
        return Chain()


def _live(settings: Settings, chain: Chain, model: str) -> str | None:
    """By the chain or, where that is empty, by the pointer."""
    from services.releasing import live_bundle

    live = live_bundle(settings.models, model, chain)
    return None if live is None else live[0].name


def _read(settings: Settings, text: str) -> tuple[Path, Manifest]:
    from feature_repo.bundle import bundle_folder
    from feature_repo.manifest import MANIFEST_FILE, Manifest, decode, read_plain

    model, version = _parts(text)
    folder = bundle_folder(settings.models, model, version)
    return folder, decode(read_plain(folder, MANIFEST_FILE), Manifest, folder / MANIFEST_FILE)


def _facts(folder: Path) -> dict[str, Any]:
    from feature_repo.manifest import MANIFEST_FILE, Manifest, decode, read_plain

    manifest = decode(read_plain(folder, MANIFEST_FILE), Manifest, folder / MANIFEST_FILE)
    return {"model": manifest.model, "version": manifest.version, "train": manifest.train, "test": manifest.test,
            "service_hash": manifest.service_hash, "metrics": manifest.metrics.get("model", {}),
            "retrain_id": manifest.data.get("retrain_id")}


def _figure(facts: dict[str, Any], name: str) -> str:
    value = facts["metrics"].get(name)
    return "" if value is None else f"{value:.4f}"


def _text(value: Any) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else str(value)
