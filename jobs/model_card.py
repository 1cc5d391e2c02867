"""The model card: the manifest in plain words."""

from __future__ import annotations

from feature_repo.bundle import Manifest
from feature_repo.views import DAY_MS

__all__ = ["model_card"]

NAMES = {"model": "this model", "dummy": "constant score"}
BLOCKED = "Events of {word}s already known to be compromised on their day are left out. "


def model_card(manifest: Manifest, blocks: bool = True) -> str:
    """Markdown for people who have to decide about the model or live with its alerts."""
    model = manifest.metrics["model"]
    precision = next(name for name in model if "_precision_" in name)
    (word, _, k), days = precision.split("_"), manifest.label_delay_ms / DAY_MS
    table = "\n".join(
        f"| {_told(name)} | {values['auc']:.3f} | {values['average_precision']:.3f} | {values[precision]:.3f} |"
        for name, values in manifest.metrics.items()
    )
    fitted, alerted = manifest.parameters, model[f"alerted_{word}s_per_day"]
    commit = f", commit {manifest.git_commit}" if manifest.git_commit else ""
    return f"""# Model {manifest.model}, version {manifest.version}

Gives each event the probability of `{manifest.label}`. From {manifest.threshold:.4f} on it is an alert: that threshold would have
alerted {k} {word}s a day in the days between training and test; in the test period it alerted {alerted:.1f} a day.

## How good it is
Measured on {manifest.test[0]}..{manifest.test[1]} (UTC, both days included): {model['rows']:,} events, {model['positives']:,} of them
`{manifest.label}`. {BLOCKED.format(word=word) if blocks else ""}All rows of the table saw the same events.

| | AUC | average precision | {word} precision@{k} |
|---|---|---|---|
{table}

AUC: how often a bad event outranks a good one. Average precision: how clean the top of the ranking is, over all cut-offs. {word.title()}
precision@{k}: of the {k} {word}s that score highest on a day, the share that had a `{manifest.label}` event that day.

## What it was trained on
{manifest.data['train_rows']:,} events of {manifest.train[0]}..{manifest.train[1]}, {manifest.data['train_positives']:,} of them
`{manifest.label}`. A label counts as known {days:g} days after its event; training and test lie at least that far apart, so every
training label was known when the test began.

{fitted['n_estimators']} gradient-boosted trees of depth {fitted['max_depth']}, learning rate {fitted['learning_rate']}, seed
{manifest.seed}, over the {len(manifest.inputs)} features of service `{manifest.service}` (definition
{manifest.service_hash}){commit}. A feature may be null: each tree has a side for that.

## Limits
- It knows the patterns of its training days; what is new is found late or not at all until labels for it mature.
- {word.title()} precision@{k} can never exceed the share of `{manifest.label}` {word}s among {k}: with few of them a day its best value
  is far below 1.
- While the online store cannot be read, only the event itself is known. Such scores are marked degraded and are worse than the table.
- Scores rank; they are not calibrated to money or to another population of cards.
- No personal data but the name of who trained it is in this bundle: golden rows hold feature values without ids.
"""


def _told(name: str) -> str:
    return NAMES.get(name) or f"same recipe, `{name.removeprefix('only_')}` alone"
