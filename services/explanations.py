"""An explanation for people: as text, and as one HTML page that needs nothing beside it. What is told is ``jobs.explain``'s."""

from __future__ import annotations

from html import escape
from typing import Any

from services.words import duration, iso

__all__ = ["page", "text"]

STATES = {"scored": "the scored event", "used": "", "copy": "copy, counted once", "seen_early": "in flight: seen, though it arrived after",
          "not_seen": "in flight: had arrived, not seen yet", "late": "too late for this view, never counted"}
STYLE = """body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}th,td{text-align:left;padding:.2rem .6rem;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}i.up,i.down{display:inline-block;height:.8em}i.up{background:#c0392b}
i.down{background:#2471a3}.note{color:#8a4b00}h2{margin-top:2rem}"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def number(value: float | None, digits: int = 6) -> str:
    return "null" if value is None else f"{value:.{digits}g}"


def place(record: dict[str, Any]) -> str:
    return f"{record['topic']}/{record['partition']}/{record['offset']}"


def signed(part: float | None) -> str:
    return "" if part is None else f"{part:+.4f}"


def summary(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What is said first, as (what, that)."""
    decision, source, logged = facts["decision"], facts["source"], facts["logged"]
    verdict = {None: "no decision, no model", True: "ALERT", False: "no alert"}[decision["alert"]]
    notes = [word for word in ("degraded", "late") if decision[word]]
    lines = [
        ("prediction", facts["prediction_id"]),
        ("event", f"{facts['event_id']}, {iso(facts['event_time'])}, arrived {iso(facts['arrival_ms'])}"),
        ("of", ", ".join(f"{name} {value}" for name, value in facts["entities"].items())),
        ("decision", f"{verdict}: score {number(decision['score'])}, threshold {number(decision['threshold'])}"
                     + (f" ({', '.join(notes)})" if notes else "")),
        ("from", f"{place(source)}, logged {place(logged)}" + (f", {logged['copies'] - 1} later copies" if logged["copies"] > 1 else "")),
    ]
    if "model" in facts:
        lines += of_model(facts["model"])
    lines += [("reason", f"{each['code']} {each['words']}: {number(each['value'])} ({each['feature']}, {signed(each['contribution'])})")
              for each in facts.get("reasons", ())]
    if "outcome" in facts:
        lines.append(("outcome", outcome(facts["outcome"])))
    if "fault" in facts:
        lines.append(("note", facts["fault"]))
    return lines


def of_model(model: dict[str, Any]) -> list[tuple[str, str]]:
    if "fault" in model:
        return [("model", f"{model['name']} version {model['version']}: {model['fault']}")]
    standing = "champion now" if model["champion_now"] else "not the champion now"
    data = ", ".join(f"{key} {value}" for key, value in model["data"].items() if isinstance(value, str | int))
    return [("model", f"{model['name']} version {model['version']}, {standing}, manifest {model['manifest_sha256'][:12]}"),
            ("trained", f"{'..'.join(model['train'])}, tested {'..'.join(model['test'])}" + (f"; {data}" if data else "")),
            ("contributions", f"{model['contributions']}; base {model['base']:+.4f}, margin {model['margin']:+.4f}")]


def outcome(told: dict[str, Any]) -> str:
    value = "not known yet" if told["value"] is None else f"{told['label']} = {told['value']}"
    revisions = [f"revision {r['revision']} arrived {iso(r['arrival_ms'])} ({place(r)})" for r in told["records"]]
    return "; ".join([value, *revisions])


def ranked(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Features, those that contributed most first."""
    return sorted(facts.get("features", []), key=lambda feature: -abs(feature["contribution"] or 0.0))


def origin(feature: dict[str, Any]) -> str:
    if feature["view"] is None:
        return str(feature["doc"]) or "of the event"
    return f"{feature['view']}: {feature['function']} over {duration(feature['window_ms'])}, {feature['events']} events"


def of_view(view: dict[str, Any]) -> str:
    said = f"{view['view']} of {', '.join(view['entity'].values())}: {view['verdict']}, n {view['n']}, fingerprint {view['fingerprint']}"
    said += f", applied {view['applied']}" + (f", up to {duration(view['delay_ms'])} before" if view["delay_ms"] else "")
    return said + (f" — {view['why']}" if view["why"] else "")


def of_event(event: dict[str, Any]) -> tuple[str, ...]:
    columns = " ".join(f"{name}={value}" for name, value in event["columns"].items())
    windows = f"{duration(event['windows_ms'][0])} and longer" if event["windows_ms"] else ""
    return (place(event), event["event_id"] or "", iso(event["event_time"]),
            iso(event["arrival_ms"]), columns, windows, STATES[event["state"]])


def text(facts: dict[str, Any]) -> str:
    lines = [f"{what:<14}{that}" for what, that in summary(facts)]
    if features := ranked(facts):
        lines += ["", f"{'feature':<26}{'value':>14}{'contribution':>14}  from"]
        lines += [f"{f['name']:<26}{number(f['value']):>14}{signed(f['contribution']):>14}  {origin(f)}" for f in features]
    if facts.get("request", {}).get("follows") is False:
        lines.append("request-time features do not follow from the event and the window features")
    for view in facts.get("views", []):
        lines += ["", of_view(view)]
        lines += ["  " + "  ".join(part for part in of_event(event) if part) for event in view["events"]]
        if left := sum(n for state, n in view["states"].items() if state != "arrived_later") - view["events_told"]:
            lines.append(f"  and {left:,} older (--events)")
    return "\n".join(lines)


def page(facts: dict[str, Any]) -> str:
    """The same as HTML. Every text is escaped, and the page may load and run nothing."""
    widest = max((abs(f["contribution"] or 0.0) for f in facts.get("features", [])), default=0.0) or 1.0

    def bar(part: float | None) -> str:
        return "" if part is None else f'<i class="{"up" if part > 0 else "down"}" style="width:{10 * abs(part) / widest:.2f}rem"></i>'

    def table(head: tuple[str, ...], rows: list[str]) -> str:
        return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{''.join(rows)}</table>"

    def cells(values: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in values) + "</tr>"

    body = ["<h1>Why this score</h1>", table(("", ""), [cells(pair) for pair in summary(facts)])]
    if features := ranked(facts):
        rows = [f"<tr><td>{escape(f['name'])}</td><td class=n>{escape(number(f['value']))}</td>"
                f"<td class=n>{signed(f['contribution'])}</td><td>{bar(f['contribution'])}</td>"
                f"<td>{escape(origin(f))}</td></tr>" for f in features]
        body += ["<h2>Features</h2>", table(("feature", "value", "contribution", "", "from"), rows)]
    for view in facts.get("views", []):
        head = ("place", "event", "event time", "arrival", "columns", "counted in", "")
        events = [cells(of_event(event)) for event in view["events"]]
        body += [f"<h2>{escape(view['view'])}</h2><p>{escape(of_view(view))}</p>", table(head, events)]
    title = escape(f"prediction {facts['prediction_id']}")
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n")
