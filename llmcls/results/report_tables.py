"""The tables of a report: result beside the baselines, all metrics, labels, rules, data, devices and cost."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from llmcls.evaluation.bootstrap import Marks, bootstrap_intervals
from llmcls.recipe.metric_names import headline, in_words
from llmcls.recipe.shareable import without_paths
from llmcls.results.cells import BASELINE_NAMES, shown_baselines
from llmcls.results.report_source import Source, mean_of
from llmcls.results.verdict import judged_metric

# Rows of a long table that are shown before someone asks for all.
SHOWN_LABELS = 40
SEARCH_FROM = 20
# Labels in the table where there are many.
MOST_FREQUENT, WORST = 200, 100


def title(source: Source) -> str:
    """Model, data set, and seeds."""
    shared = without_paths(source.recipe)
    seeds = ", ".join(str(seed.seed) for seed in source.seeds)
    many = "s" if len(source.seeds) > 1 else ""
    return f"{Path(shared.model.model_name).name} on {shared.data.dataset_name}, seed{many} {seeds}"


def facts(source: Source) -> list[str]:
    """What was done, in a few words each."""
    kinds = {
        "multi_label_classification": f"any of {len(source.labels.names):,} labels per text",
        "single_label_classification": f"one of {len(source.labels.names):,} classes per text",
        "binary_classification": "yes or no for each text",
    }
    counts = source.seeds[0].metrics.get("data", {})
    rows = [f"{counts[split]['rows']:,} {split} texts" for split in counts]
    ended = max((line["time"] for seed in source.seeds for line in seed.log if "time" in line), default=None)
    date = [f"{day.day} {day:%B %Y}" for day in [datetime.fromtimestamp(ended, UTC)]] if ended else []
    teachers = source.recipe.data.distilled_from
    taught = [f"distilled from {' and '.join(teachers)}"] if teachers else []
    return [kinds[source.labels.problem_type], *taught, *rows, *date]


def result(source: Source) -> dict[str, Any]:
    """The value that matters most, with its interval, beside those of the baselines, as bars."""
    split, metric = source.splits[-1], judged_metric(source.recipe)
    value, interval = source.mean(split, metric), source.intervals.get(metric)
    bars = [{"name": "fine-tuned", "term": None, "value": value, "interval": interval, "own": True}]
    store = source.runs[0].experiment.baselines
    decisions = store.decisions_on(split) if source.predictions else {}
    for name, found in shown_baselines(source.runs[0].experiment, source.recipe).items():
        if split in found:
            limits = _interval_of(source, decisions.get(name), metric)
            own = {"name": BASELINE_NAMES[name], "term": name, "value": found[split].get(metric), "interval": limits}
            bars.append(own | {"own": False, "seconds": found.get("seconds")})
    return {"split": split, "metric": metric, "words": in_words(metric), "value": value, "interval": interval} | {
        "bars": bars
    }


def _interval_of(source: Source, decisions: Marks | None, metric: str) -> list[float] | None:
    """The interval of a baseline; None if its decisions are not those of the predicted rows."""
    if decisions is None or decisions.shape[0] != len(source.predictions[0]):
        return None
    true = source.predictions[0].true_marks(source.labels)
    return bootstrap_intervals(true, decisions, binary=source.labels.binary).get(metric)


def figures(source: Source) -> list[dict[str, Any]]:
    """The metrics with intervals, each with its value at 0.5, of each seed and of each baseline."""
    split = source.splits[-1]
    baselines = shown_baselines(source.runs[0].experiment, source.recipe)
    known = {name: found[split] for name, found in baselines.items() if split in found}
    first = [name for name in headline(source.labels.problem_type) if name in source.seeds[0].metrics[split]]
    rows = []
    for name in dict.fromkeys([*first, *source.seeds[0].metrics[split].get("intervals", {})]):
        values = source.values(split, name)
        half = [seed.metrics.get("at_half", {}).get(split, {}).get(name) for seed in source.seeds]
        rows.append({
            "metric": name, "words": in_words(name), "value": mean_of(values), "values": values,
            "interval": source.intervals.get(name), "std": _deviation(values), "at_half": mean_of(half),
            "baselines": {n: found.get(name) for n, found in known.items()},
        })  # fmt: skip
    return rows


def _deviation(values: list[float | None]) -> float | None:
    """The sample standard deviation; None for a single value or an undefined one."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) == len(values) and len(known) > 1 else None


def overview(source: Source) -> list[dict[str, Any]]:
    """Every metric that is a single number, on every split."""
    names = [n for n, v in source.seeds[0].metrics[source.splits[-1]].items() if not isinstance(v, dict | list)]
    return [
        {"metric": n, "words": in_words(n), "by_split": {s: source.mean(s, n) for s in source.splits}} for n in names
    ]


def labels(source: Source) -> list[dict[str, Any]]:
    """Every label, the most frequent one first; of many labels the most frequent ones, then the worst ones."""
    split = source.splits[-1] if source.splits else None
    counts = source.seeds[0].metrics.get("data", {}).get("train", {}).get("labels", {})
    shown = np.mean([found.values for found in source.thresholds], axis=0).tolist() if source.thresholds else []
    rows = []
    for number, name in enumerate(source.labels.names):
        each = [seed.metrics[split]["per_class"][name] for seed in source.seeds] if split else [{}]
        row: dict[str, Any] = {"name": name, "train": counts.get(name), "support": each[0].get("support")}
        for key in ("f1", "precision", "recall", "average_precision"):
            row[key] = mean_of([found.get(key) for found in each])
        known = [found["f1"] for found in each if found.get("f1") is not None]
        row["range"] = [min(known), max(known)] if len(known) > 1 else None
        # The first class of a binary task has no threshold of its own.
        decides = source.labels.multi_label or (source.labels.binary and number == 1)
        row["threshold"] = shown[number] if decides and shown else None
        rows.append(row)
    rows.sort(key=lambda row: -(row["support"] if row["support"] is not None else row["train"] or 0))
    if not source.labels.many:
        return rows
    found = [row for row in rows[MOST_FREQUENT:] if row["support"] and row["f1"] is not None]
    # Of two labels with the same F1, the more frequent one has more to gain.
    return [*rows[:MOST_FREQUENT], *sorted(found, key=lambda row: row["f1"])[:WORST]]


def bands(source: Source) -> list[dict[str, Any]]:
    """Labels by their frequency in training, and the mean F1 of each band; empty where labels are few."""
    if not source.splits or "bands" not in source.seeds[0].metrics[source.splits[-1]]:
        return []
    split = source.splits[-1]
    first = source.seeds[0].metrics[split]["bands"]
    above, rows = None, []
    for name, band in first.items():
        each = [seed.metrics[split]["bands"][name] for seed in source.seeds]
        means = {key: mean_of([found[f"{key}_macro"] for found in each]) for key in ("f1", "precision", "recall")}
        last = f" to {above - 1:,}" if above else " and more"
        counts = {key: band[key] for key in ("labels", "evaluated", "support")}
        rows.append({"name": name, "rows": f"{band['from']:,}{last}", **counts, **means})
        above = band["from"]
    return rows


def rules(source: Source) -> dict[str, Any] | None:
    """Which thresholds decide, why, and what other rules would reach; None for classes."""
    taken = [seed.metrics.get("thresholds") for seed in source.seeds]
    compared = source.seeds[0].metrics.get("threshold_rules")
    if not source.has_thresholds or not all(taken) or not compared or not source.splits:
        return None
    split = source.splits[-1]
    rows = [
        {"rule": "0.5" if rule == "fixed" else f"{rule} ({found['metric']})", "figures": found.get(split, {})}
        for rule, found in compared.items()
    ]
    sentences = [threshold_words(rule) for rule in taken if rule]
    if len(set(sentences)) == 1:
        sentences = sentences[:1]
    else:
        sentences = [f"Seed {s.seed}: {words}" for s, words in zip(source.seeds, sentences, strict=True)]
    return {"sentences": sentences, "rows": rows, "names": list(compared["fixed"].get(split, {})), "split": split}


def threshold_words(taken: dict[str, Any]) -> str:
    """A rule of thresholds, what it was tuned for, and why, as a sentence."""
    words = f"Thresholds: {taken['rule'].replace('_', ' ')}"
    words += f", tuned on validation for {taken['metric']}" if taken["metric"] else ", not tuned"
    return f"{words} ({taken['reason']})." if taken["reason"] else f"{words}."


def data(source: Source) -> list[dict[str, Any]]:
    """The splits: file, rows, and labels per text."""
    files, rows = without_paths(source.recipe).data.files(), []
    for split, counts in source.seeds[0].metrics.get("data", {}).items():
        marks = sum(counts["labels"].values())
        rare = min(counts["labels"].items(), key=lambda item: item[1])
        rows.append({"split": split, "file": files.get(split, ""), "rows": counts["rows"], "rarest": rare})
        rows[-1]["per_text"] = marks / counts["rows"] if source.labels.multi_label and counts["rows"] else None
    return rows


def seeds(source: Source) -> list[dict[str, Any]]:
    """Every run: its value, its best step, and its time."""
    metric = judged_metric(source.recipe)
    return [
        {
            "seed": seed.seed, "folder": seed.folder.path.name, "steps": seed.metrics["steps"],
            "best_step": seed.metrics["best_step"], "seconds": seed.metrics["training"]["seconds"],
            "value": seed.metrics[source.splits[-1]].get(metric) if source.splits else None,
        }
        for seed in source.seeds
    ]  # fmt: skip


def machine(source: Source) -> list[tuple[str, str]]:
    """Devices, time and cost of the trainings, and the versions."""
    first = source.seeds[0].environment
    training = [seed.metrics["training"] for seed in source.seeds]
    seconds = sum(t["seconds"] for t in training)
    processes = [seed.environment.get("processes", 1) for seed in source.seeds]
    device, count = first.get("device", "unknown"), first.get("processes", 1)
    on_gpu = device not in ("cpu", "unknown")
    hours = sum(t["seconds"] * p for t, p in zip(training, processes, strict=True)) / 3600
    kind = "GPU hours" if on_gpu else "hours of processes"
    speed = statistics.fmean(t["samples_per_second"] for t in training)
    tokens = statistics.fmean(t["tokens_per_second"] for t in training)
    steps = "; ".join(f"{s.metrics['steps']:,}, best after {s.metrics['best_step']:,}" for s in source.seeds)
    rows = [
        ("devices", f"{count} × {device}" if count > 1 else device),
        ("engine", f"{first.get('engine', 'unknown')}, mixed precision {first.get('mixed_precision') or 'unknown'}"),
        ("optimizer steps", steps),
        ("training time", spoken_time(seconds) + (f" for {len(training)} seeds" if len(training) > 1 else "")),
        ("cost", f"{hours:.3g} {kind}, evaluation not included"),
        ("speed", f"{speed:,.1f} texts/s, {tokens:,.0f} tokens/s"),
    ]
    versions = {"llmcls": first.get("llmcls"), **first.get("packages", {})}
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return rows + ([("versions", named)] if named else [])


def spoken_time(seconds: float) -> str:
    """A duration in the units that fit it.

    Examples
    --------
    >>> spoken_time(2.0), spoken_time(95), spoken_time(8000)
    ('2 s', '1 min 35 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
