"""What a check of the doctor finds, and what it is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmcls.recipe.schema import Recipe

Status = Literal["ok", "warning", "fault", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes
    ----------
    status : str
        "ok"; "warning": it works, but slower or with a risk; "fault": training will not work as it should; "skipped".
    found : str
        What was found, in one line.
    advice : str
        What to do about a warning or a fault.
    details : dict
        Numbers and names for ``doctor.json``.
    """

    status: Status
    found: str
    advice: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def ok(found: str, **details: Any) -> Finding:
    """A check that found nothing wrong."""
    return Finding("ok", found, details=details)


def warning(found: str, advice: str, **details: Any) -> Finding:
    """A check that found something slow or risky."""
    return Finding("warning", found, advice, details)


def fault(found: str, advice: str, **details: Any) -> Finding:
    """A check that found something that does not work."""
    return Finding("fault", found, advice, details)


def skipped(reason: str) -> Finding:
    """A check that does not apply here."""
    return Finding("skipped", reason)


class NotApplicable(Exception):
    """Raised in a check that does not apply here; the message says why."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is diagnosed.

    Compared by identity, so that what is made for a subject can be kept for the next check.

    Attributes
    ----------
    recipe : Recipe, optional
        None to diagnose the machine with a small Llama.
    folder : Path
        For temporary files.
    """

    recipe: Recipe | None
    folder: Path

    @property
    def output_root(self) -> Path:
        """Where results go: the recipe's, or the current folder."""
        return Path(self.recipe.exp.output_root if self.recipe else ".")
