"""Reports: the summary over seeds, and one self-contained HTML page a run.

``python -m llmcls.report RECIPE [key=value ...]`` prints the folder in which a recipe's results lie.
"""

from __future__ import annotations

import argparse
import html
import io
import math
import statistics
from pathlib import Path
from typing import Any

from llmcls import run_command
from llmcls.files import read_json, write_json, write_text
from llmcls.recipe import Recipe, load_recipe, recipe_to_yaml

SUMMARY_METRICS = (
    "f1_micro", "f1_macro", "f1_weighted", "f1_samples", "precision_micro", "recall_micro", "accuracy",
    "average_precision_macro", "hamming_loss", "loss",
)  # fmt: skip

BASELINE_NAMES = {"majority": "majority", "tfidf_linear": "TF-IDF + linear"}


def experiment_folder(recipe: Recipe) -> Path:
    """``output_root/<model>/<dataset>[/<run_name>]``; a local model folder goes by its last name."""
    name = recipe.model.model_name
    local = Path(name).is_dir()
    model = Path(name).resolve().name if local else name.replace("/", "__")
    root = Path(recipe.exp.output_root) / model / recipe.data.dataset_name
    return root / recipe.exp.run_name if recipe.exp.run_name else root


def write_summary(root: Path, runs: list[Path], baselines: dict[str, Any] | None = None) -> str:
    """Write summary.json and summary.md of finished runs, beside the baselines; returns the table.

    The standard deviation is that of a sample (n - 1), None for a single seed.
    """
    results = [read_json(run / "metrics.json") for run in runs]
    splits = [s for s in ("validation", "test") if all(s in r for r in results)]
    if not splits and all("train" in r for r in results):
        splits = ["train"]
    summary: dict[str, Any] = {"seeds": [r["seed"] for r in results], "runs": [run.name for run in runs]}
    for split in splits:
        summary[split] = {}
        for name in SUMMARY_METRICS:
            values = [r[split].get(name) for r in results]
            if any(v is None for v in values):
                continue
            summary[split][name] = {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "values": values,
            }
    summary["training"] = [r["training"] for r in results]
    write_json(root / "summary.json", summary)
    lines = [f"# {root.parts[-2]} / {root.name}", ""]
    for split in splits:
        beside = {BASELINE_NAMES[n]: b[split] for n, b in (baselines or {}).items() if split in b}
        header = [split, "mean", "std", *(f"seed {s}" for s in summary["seeds"]), *beside]
        lines += ["| " + " | ".join(header) + " |", "|---|" + "---|" * (len(header) - 1)]
        for name, entry in summary[split].items():
            std = "" if entry["std"] is None else f"{entry['std']:.4f}"
            values = " | ".join(f"{v:.4f}" for v in entry["values"])
            others = "".join(f" {_number(b.get(name))} |" for b in beside.values())
            lines += [f"| {name} | {entry['mean']:.4f} | {std} | {values} |{others}"]
        lines += [""]
    text = "\n".join(lines)
    write_text(root / "summary.md", text)
    return text


def write_report(folder: Path, recipe: Recipe, metrics: dict[str, Any], baselines: dict[str, Any] | None) -> None:
    """Write report.html, which needs no other file: curves, metrics and how sure they are, baselines, each label,
    confusions, the recipe."""
    splits = [s for s in ("train", "validation", "test") if s in metrics]
    model = recipe.model.model_name
    name = Path(model).name if Path(model).is_dir() else model
    title = f"{name} on {recipe.data.dataset_name}, seed {metrics['seed']}"
    training = metrics["training"]
    facts = (
        f"{metrics['steps']} optimizer steps in {training['seconds']:.0f} s, "
        f"{training['samples_per_second']:.1f} samples/s, {training['tokens_per_second']:.0f} tokens/s; "
        f"best after step {metrics['best_step']}"
    )
    body = _evaluated(folder, metrics, splits, baselines) if splits else "<p>No split was evaluated.</p>"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1><p>{html.escape(facts)}</p>
<h2>Training</h2>{_curves(metrics["history"], recipe)}
{body}
<h2>Recipe</h2><pre>{html.escape(recipe_to_yaml(recipe))}</pre>
</body></html>
"""
    write_text(folder / "report.html", page)


def _evaluated(folder: Path, metrics: dict[str, Any], splits: list[str], baselines: dict[str, Any] | None) -> str:
    """The tables of a run that evaluated something; the last of ``splits`` is shown in detail."""
    shown = splits[-1]
    found = metrics[shown]
    parts = []
    if "intervals" in found:
        half = metrics["at_half"][shown]
        beside = {n: b[shown] for n, b in (baselines or {}).items() if shown in b}
        rows = [
            [name, _number(found[name]), f"{low:.4f} to {high:.4f}", _number(half[name])]
            + [_number(b[name]) for b in beside.values()]
            for name, (low, high) in found["intervals"].items()
        ]
        header = ["metric", "value", "95 % interval", "with thresholds of 0.5", *(BASELINE_NAMES[n] for n in beside)]
        parts.append(f"<h2>Result ({shown})</h2>{_table(header, rows)}")
    overview = [
        [name, *(_number(metrics[s].get(name)) for s in splits)]
        for name, value in found.items()
        if not isinstance(value, dict | list)
    ]
    parts.append(f"<h2>Metrics</h2>{_table(['metric', *splits], overview)}")
    per_class = found["per_class"]
    columns = list(next(iter(per_class.values())))
    saved = folder / "thresholds.json"
    thresholds = read_json(saved)["values"] if saved.exists() else {}
    rows = [
        [name, *(_number(row[c]) for c in columns), _number(thresholds.get(name))] for name, row in per_class.items()
    ]
    parts.append(f"<h2>Each label ({shown})</h2>{_table(['label', *columns, 'threshold'], rows)}")
    if found.get("confusions"):
        rows = [[c["true"], c["predicted"] or "nothing", str(c["rows"])] for c in found["confusions"]]
        parts.append(f"<h2>Taken for one another ({shown})</h2>{_table(['true', 'predicted instead', 'rows'], rows)}")
    return "\n".join(parts)


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #d8dee4}
table{border-collapse:collapse}th,td{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #eceff2}
th:first-child,td:first-child{text-align:left}pre{background:#f6f8fa;padding:1rem;overflow:auto}
svg{max-width:100%;height:auto}
"""


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(h.replace('_', ' '))}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | int | None) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _curves(history: list[dict[str, Any]], recipe: Recipe) -> str:
    """Losses, and the metric that picked the best model, over optimizer steps, as inline SVG."""
    metric, train = recipe.train.metric_for_best_model, recipe.train
    plain = train.loss == "cross_entropy" and not train.label_smoothing and train.pos_weight is None
    # The figure is drawn without pyplot, which would pick a window system and keep figures alive.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

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
        right.plot(steps, [h["validation"][metric] for h in evaluated], marker="o", color="tab:green")
        right.set_title(f"validation {metric}")
    else:
        right.set_visible(False)
    left.set_title("loss")
    left.legend()
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
    out = io.StringIO()
    figure.savefig(out, format="svg")
    text = out.getvalue()
    return text[text.index("<svg") :]


def main(argv: list[str] | None = None) -> None:
    """Print where a recipe's results lie."""
    parser = argparse.ArgumentParser(prog="llmcls.report", description="Print the folder of a recipe's results.")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args(argv)
    print(experiment_folder(load_recipe(arguments.recipe, arguments.overrides)))


if __name__ == "__main__":
    run_command(main)
