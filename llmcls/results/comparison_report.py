"""The page of a comparison: differences with their intervals, labels, thresholds, and what differs in the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcls.common.files import write_text
from llmcls.recipe.load import load_recipe, recipe_to_dict
from llmcls.recipe.metric_names import in_words
from llmcls.recipe.shareable import without_paths
from llmcls.results.comparison import Comparison, Verdict
from llmcls.results.report_page import render
from llmcls.results.report_tables import SEARCH_FROM, SHOWN_LABELS
from llmcls.results.run_folder import RunFolder
from llmcls.results.verdict import judged_metric


def write_comparison_report(path: Path, first: Path, second: Path, found: Comparison) -> None:
    """Write a comparison as a page that needs no other file.

    Parameters
    ----------
    path : Path
    first, second : Path
        The folders that were compared.
    found : Comparison
    """
    metric = judged_metric(load_recipe(found.first[0].recipe))
    main = next(v for v in found.of_models if v.metric == metric)
    rows = [
        {"name": name, "a": a, "b": b, "difference": b - a}
        for name, (a, b) in zip(found.labels.names, found.label_f1, strict=True)
    ]
    folders = [_last_parts(folder) for folder in (first, second)]
    page = render(
        "comparison.html",
        title=f"A or B on {load_recipe(found.first[0].recipe).data.dataset_name}",
        kicker="Comparison of two fine-tuned classifiers",
        facts=[f"{found.rows:,} {found.split} texts", f"A: {_seeds(found.first)}", f"B: {_seeds(found.second)}"],
        sections=[("result", "Result"), ("labels", "Labels"), ("recipes", "Recipes"), ("glossary", "Glossary")],
        folder=" and ".join(folders),
        folders=folders,
        verdict=verdict_sentence(main),
        steps=_next_steps(found, main),
        blocks=_blocks(found),
        remarks=found.remarks(),
        rules=found.rules if found.labels.multi_label or found.labels.binary else None,
        labels=sorted(rows, key=lambda row: -abs(row["difference"])),
        search_from=SEARCH_FROM,
        shown_labels=SHOWN_LABELS,
        keys=_differing(found),
    )
    write_text(path, page)


def _last_parts(folder: Path) -> str:
    """The part of a path that says which experiment it is, and not where it lies on this machine."""
    return "/".join(folder.resolve().parts[-3:])


def _seeds(runs: list[RunFolder]) -> str:
    return "one seed" if len(runs) == 1 else f"{len(runs)} seeds"


def verdict_sentence(v: Verdict) -> str:
    """What a comparison says in one metric.

    Examples
    --------
    >>> verdict_sentence(Verdict("f1_micro", 0.7, 0.75, 0.02, 0.08, 0.001, "B is better"))
    'B is better: micro-F1 0.750 against 0.700, a difference of +0.050 (95 % interval +0.020 to +0.080).'
    """
    words = {"noise": "No difference that is more than noise"}.get(v.word, v.word)
    return (
        f"{words}: {in_words(v.metric)} {v.second:.3f} against {v.first:.3f}, a difference of "
        f"{v.second - v.first:+.3f} (95 % interval {v.low:+.3f} to {v.high:+.3f})."
    )


def _next_steps(found: Comparison, main: Verdict) -> list[str]:
    """What to do after a comparison."""
    steps = []
    if main.word == "noise":
        steps.append("Take the one that is cheaper to run, or measure more finely: more test texts, more seeds.")
    else:
        steps.append(f"Take {'B' if main.second > main.first else 'A'}, unless the labels that you need got worse.")
    if not found.same and min(len(found.first), len(found.second)) == 1:
        steps.append("Train both with several seeds, exp.seeds=[1,2,3]: one seed does not show the chance of training.")
    if found.rule:
        steps.append("Give both the same rule for thresholds (`llmcls thresholds`) before you deploy one of them.")
    return steps


def _blocks(found: Comparison) -> list[dict[str, Any]]:
    """The verdicts as rows, first those on the models; each block has one scale."""
    blocks = [(f"both with thresholds {found.rule}" if found.rule else "", found.of_models, True)]
    if found.rule:
        blocks.append(("models and thresholds together, which says nothing about the models", found.verdicts, False))
    return [{"caption": caption, "models": models, "rows": _rows(verdicts)} for caption, verdicts, models in blocks]


def _rows(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """Verdicts with their places on a line from -limit to +limit, as shares of its length."""
    limit = max(0.01, *(abs(value) for v in verdicts for value in (v.low, v.high))) * 1.1

    def place(value: float) -> float:
        return (value + limit) / (2 * limit)

    return [
        {
            "metric": v.metric, "words": in_words(v.metric), "first": v.first, "second": v.second,
            "difference": v.second - v.first, "low": v.low, "high": v.high, "p": v.p, "word": v.word,
            "at": place(v.second - v.first), "from": place(v.low), "to": place(v.high),
        }
        for v in verdicts
    ]  # fmt: skip


def _differing(found: Comparison) -> list[tuple[str, Any, Any]]:
    """The keys of the recipes that differ, with both values; paths by their last part."""
    a, b = (recipe_to_dict(without_paths(load_recipe(side[0].recipe))) for side in (found.first, found.second))
    return [
        (f"{section}.{key}", value, b[section][key])
        for section in ("data", "model", "train")
        for key, value in a[section].items()
        if value != b[section][key]
    ]
