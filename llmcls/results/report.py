"""Render report.html: one self-contained page per run, with curves, metrics, baselines, labels and the recipe."""

from __future__ import annotations

import html
import io
import math
from pathlib import Path
from typing import Any

from llmcls.common.files import read_json, write_text
from llmcls.recipe.defaults import selection_metric
from llmcls.recipe.load import load_recipe, recipe_to_yaml
from llmcls.recipe.metric_names import headline
from llmcls.recipe.schema import Recipe
from llmcls.results.finished_runs import labels_of
from llmcls.results.run_folder import ExperimentFolder, RunFolder
from llmcls.results.seal import reseal
from llmcls.results.verdict import verdict_on

# Baselines, as in baselines.json, to their names in tables.
BASELINE_NAMES = {"majority": "majority", "tfidf_linear": "TF-IDF + linear", "probe": "frozen + linear probe"}
# What the table of results begins with. Only binary tasks have metrics of a positive class.
HEADLINES = (*headline("binary_classification"), *headline("multi_label_classification"))


def write_report(run: RunFolder, recipe: Recipe, metrics: dict[str, Any]) -> None:
    """Write the report of a run, a page that needs no other file.

    Parameters
    ----------
    run : RunFolder
    recipe : Recipe
    metrics : dict
        The content of metrics.json.
    """
    baselines = shown_baselines(run.experiment, recipe)
    splits: list[str] = [s for s in ("train", "validation", "test") if s in metrics]
    model = recipe.model.model_name
    name = Path(model).name if Path(model).is_dir() else model
    title = f"{name} on {recipe.data.dataset_name}, seed {metrics['seed']}"
    training = metrics["training"]
    facts = (
        f"{metrics['steps']} optimizer steps in {training['seconds']:.0f} s, "
        f"{training['samples_per_second']:.1f} samples/s, {training['tokens_per_second']:.0f} tokens/s; "
        f"best after step {metrics['best_step']}"
    )
    verdict = verdict_on([run])
    first = f"<p><strong>{html.escape(verdict.sentence())}</strong></p>" if verdict else ""
    body = _evaluated(run, metrics, splits, baselines) if splits else "<p>No split was evaluated.</p>"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>{first}<p>{html.escape(facts)}</p>
<h2>Training</h2>{_curves(metrics["history"], recipe)}
{body}
<h2>Recipe</h2><pre>{html.escape(recipe_to_yaml(recipe))}</pre>
</body></html>
"""
    write_text(run.report, page)


def render_report(run: RunFolder) -> Path:
    """Write the report of a finished run again, from the files in its folder.

    Parameters
    ----------
    run : RunFolder

    Returns
    -------
    Path
        The report.

    Raises
    ------
    UserError
        If there is no run in the folder, or it is not finished.
    """
    labels_of(run)
    write_report(run, load_recipe(run.recipe), read_json(run.metrics))
    reseal(run, [run.report])
    return run.report


def shown_baselines(experiment: ExperimentFolder, recipe: Recipe) -> dict[str, Any]:
    """The metrics of the stored baselines, by baseline and split; none if the recipe wants none."""
    return {} if recipe.exp.baselines is False else experiment.baselines.read()


def _evaluated(run: RunFolder, metrics: dict[str, Any], splits: list[str], baselines: dict[str, Any]) -> str:
    """HTML tables of the metrics of a run; the last of ``splits`` is shown in detail."""
    shown = splits[-1]
    shown_metrics = metrics[shown]
    parts = []
    if "intervals" in shown_metrics:
        at_half, intervals = metrics["at_half"][shown], shown_metrics["intervals"]
        others = {n: b[shown] for n, b in baselines.items() if shown in b}
        first = [name for name in HEADLINES if name in shown_metrics]
        rows = [
            [name, format_number(shown_metrics[name]), _interval(intervals.get(name))]
            + [format_number(values.get(name)) for values in (at_half, *others.values())]
            for name in dict.fromkeys([*first, *intervals])
        ]
        header = ["metric", "value", "95 % interval", "with thresholds of 0.5", *(BASELINE_NAMES[n] for n in others)]
        parts.append(f"<h2>Result ({shown})</h2>{_table(header, rows)}")
        parts.append(_thresholds(metrics, shown))
    overview = [
        [name, *(format_number(metrics[s].get(name)) for s in splits)]
        for name, value in shown_metrics.items()
        if not isinstance(value, dict | list)
    ]
    parts.append(f"<h2>Metrics</h2>{_table(['metric', *splits], overview)}")
    per_class = shown_metrics["per_class"]
    columns = list(next(iter(per_class.values())))
    thresholds = read_json(run.thresholds)["values"] if run.thresholds.exists() else {}
    rows = [
        [name, *(format_number(row[c]) for c in columns), format_number(thresholds.get(name))]
        for name, row in per_class.items()
    ]
    parts.append(f"<h2>Labels ({shown})</h2>{_table(['label', *columns, 'threshold'], rows)}")
    if shown_metrics.get("confusions"):
        rows = [[c["true"], c["predicted"] or "nothing", str(c["rows"])] for c in shown_metrics["confusions"]]
        parts.append(
            f"<h2>Most frequent confusions ({shown})</h2>{_table(['true', 'predicted instead', 'rows'], rows)}"
        )
    return "\n".join(parts)


def _interval(limits: list[float] | None) -> str:
    """The limits of an interval; a dash for a metric without."""
    return format_number(None) if limits is None else f"{limits[0]:.4f} to {limits[1]:.4f}"


def _thresholds(metrics: dict[str, Any], shown: str) -> str:
    """HTML: which rule decided and why, and what the others would reach on a split."""
    taken, rules = metrics.get("thresholds"), metrics.get("threshold_rules")
    if not taken or not rules:
        return ""
    words = f"Thresholds: {taken['rule']}"
    words += f", tuned on validation for {taken['metric']}" if taken["metric"] else ", not tuned"
    words += f" ({taken['reason']})." if taken["reason"] else "."
    names = list(rules["fixed"][shown])
    rows = [
        ["0.5" if rule == "fixed" else f"{rule} ({found['metric']})", *(format_number(found[shown][n]) for n in names)]
        for rule, found in rules.items()
    ]
    return f"<p>{html.escape(words)} Other rules ({shown}):</p>{_table(['rule', *names], rows)}"


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #d8dee4}
table{border-collapse:collapse}th,td{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #eceff2}
th:first-child,td:first-child{text-align:left}pre{background:#f6f8fa;padding:1rem;overflow:auto}
svg{max-width:100%;height:auto}
"""


def _table(header: list[str], rows: list[list[str]]) -> str:
    """An HTML table; all cells are escaped."""
    head = "".join(f"<th>{html.escape(h.replace('_', ' '))}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def format_number(value: float | int | None) -> str:
    """A number for a table: four decimals for a float, a dash for a missing or undefined value.

    Examples
    --------
    >>> format_number(0.5), format_number(12), format_number(None)
    ('0.5000', '12', '–')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _curves(history: list[dict[str, Any]], recipe: Recipe) -> str:
    """Plot the losses, and the metric that selects the best model, over optimizer steps; returns inline SVG."""
    metric, train = selection_metric(recipe), recipe.train
    plain = train.loss == "cross_entropy" and not train.label_smoothing and train.pos_weight is None
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # pyplot would choose a GUI backend and keep every figure in memory.
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    steps = [h["step"] for h in history]
    left.plot(
        steps, [h["train_loss"] for h in history], marker="o", label="train" if plain else "train (loss of the recipe)"
    )
    evaluated = [h for h in history if "validation" in h]
    if evaluated:
        steps = [h["step"] for h in evaluated]
        left.plot(
            steps,
            [h["validation"]["loss"] for h in evaluated],
            marker="o",
            label="validation" if plain else "validation (cross-entropy)",
        )
        right.plot(steps, [h["validation"][metric] for h in evaluated], marker="o", color="tab:green", label=metric)
        tuned = any(h.get("thresholds", "fixed") != "fixed" for h in evaluated)
        if tuned and all(metric in h["at_half"] for h in evaluated):
            right.plot(steps, [h["at_half"][metric] for h in evaluated], "--", color="tab:gray", label="at 0.5")
            right.legend()
        right.set_title(f"validation {metric}")
    else:
        right.set_visible(False)
    left.set_title("loss")
    left.legend()
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
