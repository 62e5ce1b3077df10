"""The text of a proposed recipe: each value with the reason for it."""

from __future__ import annotations

import json
import re
from typing import Any

from llmcls.intake.proposal import MODELS, Proposal

# What YAML reads as something else than text.
_WORDS = re.compile(r"y|n|yes|no|on|off|true|false|null|nan|inf", re.IGNORECASE)
_HEAD = """\
# {name}: written by `llmcls init`. Every line can be changed; docs/recipes.md lists all keys.
#
#   python -m llmcls.check {path}
#   llmcls train {path} --profile {profile}
"""


def recipe_text(proposal: Proposal, path: str, profile: str) -> str:
    """A recipe as YAML with comments.

    Parameters
    ----------
    proposal : Proposal
    path : str
        Where it will lie.
    profile : str
        The name of the profile for this machine.
    """
    data, form = proposal.data, proposal.form
    small = proposal.gpu_gib == 0
    chosen = any(proposal.model_name == name for _, name in MODELS[2:])
    known = chosen or "smollm2" in proposal.model_name.lower()
    counted = "counted with the model's tokenizer" if proposal.measured else "estimated from the characters"
    lines = [_HEAD.format(name=data.dataset_name, path=path, profile=profile), "data:"]
    lines += [
        _line("dataset_name", data.dataset_name, "names the folder of the results"),
        _line("train_csv", data.train_csv, f"{proposal.rows:,} rows"),
    ]
    if data.csv_separator:
        lines.append(_line("csv_separator", data.csv_separator))
    if data.encoding:
        lines.append(_line("encoding", data.encoding, "as the file tells; UTF-8 needs no such line"))
    if data.val_csv:
        lines.append(_line("val_csv", data.val_csv, "selects the best model, and thresholds are tuned on it"))
    else:
        lines.append(_line("validation_split", data.validation_split, "this share is held out, stratified by label"))
    if data.test_csv:
        lines.append(_line("test_csv", data.test_csv))
    if data.id_column:
        lines.append(_line("id_column", data.id_column))
    lines += [
        _line("text_fields", data.text_fields, "joined by a line end, if they are several"),
        _line("label_columns", data.label_columns, _names(form.names)),
    ]
    if form.separator:
        lines.append(_line("label_separator", form.separator))
    lines.append(
        _line("max_length", data.max_length, f"tokens; {proposal.cut:.1%} of the texts are longer ({counted})")
    )
    lines += ["", "model:"]
    where = "no GPU was found" if small else f"the GPU has {proposal.gpu_gib:.0f} GiB"
    lines += [
        _line("model_name", proposal.model_name, f"a folder, or any decoder or encoder of the hub ({where})"),
        _line("problem_type", form.problem_type, form.reason),
        _line("torch_dtype", "bfloat16"),
    ]
    if known:
        lines += [
            _line("pooling", "mean", "the head reads the mean of all tokens,"),
            _line("bidirectional", True, "and every token sees the whole text"),
        ]
    lines += [
        _line("head_init", "auto", "the head starts from a linear probe where texts are many and labels few"),
        _line("lora_r", 16, "0 trains all weights"),
        _line("lora_alpha", 32),
        "",
        "train:",
        _line("batch_size", 16, "texts of an optimizer step on each process"),
        _line("gradient_accumulation_steps", 1),
        _line("num_train_epochs", _epochs(proposal.rows)),
        _line(
            "learning_rate",
            2e-4 if chosen and not small else 5e-4,
            "2.0e-4 for models of 1 billion parameters and more",
        ),
        _line("early_stopping_patience", 3, "evaluations without improvement"),
        _line("report_to", ["tensorboard"]),
        "",
        "exp:",
        _line("output_root", "outputs"),
        _line("seeds", [1], "several seeds show what is noise"),
    ]
    return "\n".join(lines) + "\n"


def _epochs(rows: int) -> int:
    """More epochs for fewer rows, so that the optimizer gets enough steps."""
    return 8 if rows < 1000 else 4 if rows < 10_000 else 2


def _line(key: str, value: Any, comment: str | None = None) -> str:
    """``key: value  # comment``."""
    text = f"  {key}: {_yaml(value)}"
    return text if comment is None else f"{text:<46}  # {comment}"


def _yaml(value: Any) -> str:
    """A value in YAML: JSON, of which names without special characters need no quotes.

    Examples
    --------
    >>> _yaml(["text", "a b", "no"]), _yaml(0.0005), _yaml(True)
    ('[text, "a b", "no"]', '5.0e-04', 'true')
    """
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/.][\w/.-]*", value) and not _WORDS.fullmatch(value):
        return value
    return f"{value:.1e}" if isinstance(value, float) and value < 0.001 else json.dumps(value, ensure_ascii=False)


def _names(names: list[str]) -> str:
    shown = ", ".join(" ".join(name.split()) for name in names[:5])
    return f"{len(names)} labels: {shown}{', ...' if len(names) > 5 else ''}"
