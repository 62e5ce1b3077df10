"""The summary over seeds: mean, standard deviation, each seed, the baselines, and at its end the verdict."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from llmcls.common.files import read_json, write_json, write_text
from llmcls.recipe.load import load_recipe
from llmcls.recipe.metric_names import POSITIVE_METRICS, RANKED_METRICS
from llmcls.results.cells import BASELINE_NAMES, format_number, shown_baselines
from llmcls.results.markdown import escaped
from llmcls.results.next_steps import next_steps
from llmcls.results.report_source import Source, read_seed
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from llmcls.results.saved_labels import read_label_space
from llmcls.results.verdict import verdict_on

SUMMARY_METRICS = (
    *POSITIVE_METRICS, "f1_micro", "f1_macro", "f1_weighted", "f1_samples", "precision_micro", "recall_micro",
    "accuracy", "average_precision_micro", "average_precision_macro", "hamming_loss", "loss", *RANKED_METRICS,
)  # fmt: skip
# Shown with thresholds of 0.5 too.
AT_HALF_METRICS = ("f1_positive", "f1_micro", "f1_macro")


def write_summary(experiment: ExperimentFolder, runs: list[RunFolder]) -> str:
    """Write summary.json and summary.md of finished runs.

    Parameters
    ----------
    experiment : ExperimentFolder
    runs : list of RunFolder
        All finished.

    Returns
    -------
    str
        The content of summary.md. The standard deviation is that of a sample (n - 1), and empty for a single seed.
    """
    results = [read_json(run.metrics) for run in runs]
    recipe = load_recipe(runs[0].recipe)
    baselines = shown_baselines(experiment, recipe)
    splits = [s for s in ("validation", "test") if all(s in r for r in results)]
    if not splits and all("train" in r for r in results):
        splits = ["train"]
    summary: dict[str, Any] = {"seeds": [r["seed"] for r in results], "runs": [run.path.name for run in runs]}
    for split in splits:
        summary[split] = _over_seeds([r[split] for r in results], SUMMARY_METRICS)
        at_half = _over_seeds([r.get("at_half", {}).get(split, {}) for r in results], AT_HALF_METRICS)
        summary[split] |= {f"{name} at 0.5": entry for name, entry in at_half.items()}
    summary["training"] = [r["training"] for r in results]
    labels = read_label_space(runs[0].labels)
    source = Source(recipe, labels, [read_seed(run, found) for run, found in zip(runs, results, strict=True)])
    summary["intervals"] = {"split": source.splits[-1], **source.intervals} if source.intervals else None
    verdict = verdict_on(runs)
    summary["verdict"] = verdict.as_json() if verdict else None
    summary["next_steps"] = next_steps(verdict, recipe, results)
    write_json(experiment.summary_json, summary)
    lines = [f"# {escaped(experiment.path.parts[-2])} / {escaped(experiment.path.name)}", ""]
    for split in splits:
        others = {BASELINE_NAMES[n]: b[split] for n, b in baselines.items() if split in b}
        header = [split, "mean", "std", *(f"seed {s}" for s in summary["seeds"]), *others]
        lines += ["| " + " | ".join(header) + " |", "|---|" + "---|" * (len(header) - 1)]
        for name, entry in summary[split].items():
            std = "" if entry["std"] is None else f"{entry['std']:.4f}"
            seeds = " | ".join(f"{v:.4f}" for v in entry["values"])
            cells = "".join(f" {format_number(b.get(name))} |" for b in others.values())
            lines += [f"| {name} | {entry['mean']:.4f} | {std} | {seeds} |{cells}"]
        lines += [""]
    taken = {r["seed"]: r["thresholds"] for r in results if "thresholds" in r}
    if any(t["metric"] or t["reason"] for t in taken.values()):
        lines += [f"Thresholds of seed {seed}: {_in_words(t)}" for seed, t in taken.items()] + [""]
    teachers = recipe.data.distilled_from
    lines += [f"Distilled from {escaped(' and '.join(teachers))}.", ""] if teachers else []
    # At the end, where someone looks who has waited for the training in a terminal.
    lines += ["## Verdict", "", verdict.sentence(), ""] if verdict else []
    lines += ["What to do next:", "", *(f"- {step}" for step in summary["next_steps"]), ""]
    text = "\n".join(lines)
    write_text(experiment.summary, text)
    return text


def _over_seeds(results: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Mean, sample standard deviation and values of the metrics that every seed has."""
    found = {}
    for name in names:
        values = [result.get(name) for result in results]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            std = statistics.stdev(known) if len(known) > 1 else None
            found[name] = {"mean": statistics.fmean(known), "std": std, "values": known}
    return found


def _in_words(taken: dict[str, Any]) -> str:
    """The rule of thresholds, what it was tuned for, and why."""
    words = f"{taken['rule']} for {taken['metric']}" if taken["metric"] else "0.5"
    return f"{words} ({taken['reason']})" if taken["reason"] else words


def render_summary(runs: list[RunFolder]) -> Path:
    """Write the summary of an experiment again, from the files of its finished runs.

    Parameters
    ----------
    runs : list of RunFolder
        At least one, all of the same experiment.

    Returns
    -------
    Path
        The file summary.md.
    """
    experiment = runs[0].experiment
    write_summary(experiment, runs)
    return experiment.summary
