"""The model card: README.md beside the weights, which says what a model is, how good it is, and how to use it.

peft writes an empty template under this name. Names of labels, data sets and folders come from users, so each is
escaped for the place where it stands: YAML, Markdown, or a code block.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from llmcls.common.files import read_json, write_text
from llmcls.evaluation.calibration import load_calibration
from llmcls.evaluation.thresholds import load_thresholds
from llmcls.recipe.load import load_recipe, recipe_to_dict
from llmcls.recipe.metric_names import RANKED_METRICS
from llmcls.recipe.schema import SECTIONS, Recipe
from llmcls.recipe.shareable import hub_name, without_paths
from llmcls.results.card_usage import Home, usage
from llmcls.results.cells import BASELINE_NAMES, format_number, shown_baselines
from llmcls.results.finished_runs import FinishedRun, labels_of
from llmcls.results.markdown import code_block, escaped, table
from llmcls.results.run_folder import PREDICTED_SPLITS, ExperimentFolder, RunFolder
from llmcls.results.seal import reseal

KINDS = {
    "multi_label_classification": "Any number of {labels} labels per text",
    "single_label_classification": "One of {labels} classes per text",
    "binary_classification": "One of two classes per text",
}
ADAPTERS = {"lora": "LoRA", "rslora": "rank-stabilised LoRA", "dora": "DoRA"}
# The figures of the card, and the type and average under which the hub lists some of them.
FIGURES = (
    "f1_micro", "f1_macro", "f1_weighted", "precision_micro", "recall_micro", "accuracy", "average_precision_macro",
    "roc_auc_macro", "calibration_error", "loss", *RANKED_METRICS,
)  # fmt: skip
HUB_METRICS = {
    "f1_micro": ("f1", "micro"), "f1_macro": ("f1", "macro"), "precision_micro": ("precision", "micro"),
    "recall_micro": ("recall", "micro"), "accuracy": ("accuracy", None),
}  # fmt: skip
# Rows of the table of labels, and label columns in the recipe; a run can have thousands.
SHOWN_LABELS = 200
SHOWN_COLUMNS = 20


def write_model_card(run: RunFolder, recipe: Recipe, metrics: dict[str, Any]) -> None:
    """Write the card of a run into its ``model/``.

    Parameters
    ----------
    run : RunFolder
        With labels, thresholds, calibration and environment.
    recipe : Recipe
    metrics : dict
        The content of metrics.json.
    """
    inside = ExperimentFolder.of(without_paths(recipe)).path / run.path.name
    home = Home(inside.as_posix())
    write_text(run.model_card, _card(run, recipe, metrics, home))


def render_model_card(run: RunFolder) -> Path:
    """Write the card of a finished run again, from the files in its folder; returns its path.

    Raises
    ------
    UserError
        If there is no run in the folder, or it is not finished.
    """
    labels_of(run)
    write_model_card(run, load_recipe(run.recipe), read_json(run.metrics))
    reseal(run, [run.model_card])
    return run.model_card


def model_card(run: FinishedRun, home: Home) -> str:
    """The card of a finished run at another place than its folder.

    Parameters
    ----------
    run : FinishedRun
        Its recipe names the base model that the card names.
    home : Home
    """
    return _card(run.folder, run.recipe, read_json(run.folder.metrics), home)


def _card(run: RunFolder, recipe: Recipe, metrics: dict[str, Any], home: Home) -> str:
    splits = [split for split in PREDICTED_SPLITS if split in metrics]
    shared, baselines = without_paths(recipe), shown_baselines(run.experiment, recipe)
    parts = [
        f"---\n{_front_matter(shared, hub_name(recipe.model.model_name), metrics, splits, home)}\n---",
        f"# {escaped(_title(shared))}",
        _summary(shared, metrics, home),
        "## Use",
        *usage(home),
        "## Data",
        *_data(shared, metrics),
        "## Results",
        *(_results(shared, metrics, splits, baselines) if splits else ["No split was evaluated."]),
        "## Labels",
        *_labels(run, shared, metrics, splits),
        "## Recipe",
        "Keys that differ from their defaults:",
        code_block("yaml", yaml.safe_dump(_changed_keys(shared), sort_keys=False, allow_unicode=True, width=100)),
        "## Environment",
        table(["part", "version or value"], _environment(run), texts=2),
    ]
    return "\n\n".join(parts) + "\n"


def _title(recipe: Recipe) -> str:
    return f"{recipe.model.model_name} on {recipe.data.dataset_name}"


def _front_matter(recipe: Recipe, base: str | None, metrics: dict[str, Any], splits: list[str], home: Home) -> str:
    """The YAML that the hub reads; it knows only a base model that is on the hub."""
    spec, data_set = recipe.model, recipe.data.dataset_name
    adapter = spec.lora_r > 0 and not home.exported
    results = [
        EvalResult(
            task_type="text-classification",
            task_name="Text classification",
            dataset_type=_slug(data_set),
            dataset_name=data_set,
            dataset_split=splits[-1],
            metric_type=kind,
            metric_name=name,
            metric_value=metrics[splits[-1]][name],
            metric_args={"average": average} if average else None,
        )
        for name, (kind, average) in HUB_METRICS.items()
        if splits and metrics[splits[-1]].get(name) is not None
    ]
    data = ModelCardData(
        library_name="peft" if adapter else "onnx" if home.onnx else "transformers",
        base_model=base,
        pipeline_tag="text-classification",
        tags=["llmcls", "text-classification", recipe.model.problem_type.replace("_", "-"), *(["lora"] * adapter)],
        datasets=[data_set] if hub_name(data_set) else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        eval_results=results or None,
        model_name=_title(recipe),
    )
    if not results:
        data.pop("model_name")
    return data.to_yaml()


def _slug(name: str) -> str:
    """A name as an identifier, which the hub wants as the type of a data set."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "data"


def _summary(recipe: Recipe, metrics: dict[str, Any], home: Home) -> str:
    spec = recipe.model
    kind = KINDS[spec.problem_type].format(labels=len(metrics["labels"]))
    how = f"{ADAPTERS[spec.lora_variant]} of rank {spec.lora_r}" if spec.lora_r else "all weights"
    bits = ", base model in 4 bits" if spec.use_4bit else ""
    training = metrics["training"]
    lines = [
        f"{kind}. Fine-tuned from {escaped(spec.model_name)} with llmcls ({how}{bits}), seed "
        f"{metrics['seed']}: {metrics['steps']} optimizer steps in {training['seconds']:.0f} s, best after step "
        f"{metrics['best_step']}.",
    ]
    if recipe.data.distilled_from:
        lines.append(f"Distilled from {escaped(' and '.join(recipe.data.distilled_from))}, with texts without labels.")
    if home.exported and spec.lora_r:
        lines.append("The adapter is merged into the weights.")
    if home.proof:
        lines.append(f"Compared with the run, without llmcls: {escaped(home.proof)}.")
    return " ".join(lines)


def _data(recipe: Recipe, metrics: dict[str, Any]) -> list[str]:
    """The data set and its splits."""
    data, counts = recipe.data, metrics.get("data", {})
    files = data.files()
    columns = ", ".join(data.text_columns())
    return [
        f"Data set {escaped(data.dataset_name)}. A text is made of {escaped(columns)}, up to {data.max_length} tokens "
        f"({'one window' if data.truncation == 'windows' else escaped(data.truncation)}).",
        table(
            ["split", "file", "rows"],
            [[split, path, format_number(counts.get(split, {}).get("rows"))] for split, path in files.items()],
            texts=2,
        ),
    ]


def _results(recipe: Recipe, metrics: dict[str, Any], splits: list[str], baselines: dict[str, Any]) -> list[str]:
    """The figures of the last split with 95 % intervals, those of the others, and the baselines."""
    shown, others = splits[-1], splits[:-1]
    cuts = _uses_thresholds(recipe)
    found, at_half = metrics[shown], metrics.get("at_half", {}).get(shown, {})
    intervals = found.get("intervals", {})
    known = {name: scores[shown] for name, scores in baselines.items() if shown in scores}
    header = ["metric", shown, "95 % interval", *["at 0.5"] * cuts, *others, *(BASELINE_NAMES[n] for n in known)]
    rows = []
    for name in (name for name in FIGURES if name in found):
        limits = intervals.get(name)
        rows.append([
            name,
            format_number(found.get(name)),
            f"{limits[0]:.4f} to {limits[1]:.4f}" if limits else "–",
            *[format_number(at_half.get(name))] * cuts,
            *(format_number(metrics[split].get(name)) for split in others),
            *(format_number(scores.get(name)) for scores in known.values()),
        ])  # fmt: skip
    with_cuts = ', with the thresholds below; "at 0.5" is with thresholds of 0.5' if cuts else ""
    return [
        f"Measured on {shown}{with_cuts}. Intervals are bootstrap percentiles over its rows.",
        table(header, rows),
    ]


def _labels(run: RunFolder, recipe: Recipe, metrics: dict[str, Any], splits: list[str]) -> list[str]:
    """Each label: its rows, its threshold, and how well it is found."""
    names, counts = metrics["labels"], metrics.get("data", {})
    thresholds, cuts = load_thresholds(run.thresholds, names), _uses_thresholds(recipe)
    calibration = load_calibration(run.calibration, len(names))
    decided = {
        "single_label_classification": "The most probable class is chosen.",
        "binary_classification": f"{escaped(names[-1])} is chosen from its threshold on.",
    }.get(recipe.model.problem_type, "A text gets the labels that reach their threshold.")
    if thresholds.at_least_one:
        decided += " A text without any gets the one closest to its threshold."
    rule = thresholds.rule.replace("_", " ")
    if cuts:
        tuned = f"{rule}, tuned on validation for {thresholds.metric}" if thresholds.metric else rule
        decided += f" Thresholds: {tuned}."
    kind = calibration.kind or "not calibrated"
    header = ["label", *(f"{split} rows" for split in counts), *["threshold"] * cuts]
    per_class = metrics[splits[-1]]["per_class"] if splits else {}
    header += [f"{splits[-1]} {key}" for key in ("precision", "recall", "f1")] if splits else []
    rows = [
        [name, *(str(split["labels"][name]) for split in counts.values()), *[format_number(threshold)] * cuts]
        + [format_number(per_class[name][key]) for key in ("precision", "recall", "f1") if splits]
        for name, threshold in zip(names, thresholds.values, strict=True)
    ]
    hidden = len(rows) - SHOWN_LABELS
    more = [f"And {hidden} more label{'s' * (hidden > 1)}."]
    return [
        f"{decided} Probabilities: {kind}.",
        table(header, rows[:SHOWN_LABELS]),
        *more[: hidden > 0],
    ]


def _uses_thresholds(recipe: Recipe) -> bool:
    """Whether probabilities are compared with thresholds, not with each other."""
    return recipe.model.problem_type != "single_label_classification"


def _changed_keys(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The keys of a recipe that have no default, or another value."""
    values, changed = recipe_to_dict(recipe), {}
    for section, kind in SECTIONS.items():
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(kind)}
        changed[section] = {key: value for key, value in values[section].items() if value != defaults[key]}
    columns = changed["data"]["label_columns"]
    if len(columns) > SHOWN_COLUMNS:
        changed["data"]["label_columns"] = [*columns[:SHOWN_COLUMNS], f"and {len(columns) - SHOWN_COLUMNS} more"]
    return {section: keys for section, keys in changed.items() if keys}


def _environment(run: RunFolder) -> list[list[str]]:
    """What the run was made with."""
    found = read_json(run.environment) if run.environment.exists() else {}
    versions = {name: version for name, version in found.get("packages", {}).items() if version}
    # Checksums are for `llmcls reproduce`.
    rest = {key: value for key, value in found.items() if value is not None and not isinstance(value, dict)}
    return [[key.replace("_", " "), str(value)] for key, value in (rest | versions).items()]
