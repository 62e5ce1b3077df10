"""The versions of the libraries, against those that the project requires."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from llmcls.diagnosis.findings import Finding, Subject, fault, ok, warning

# Beside the package, in a checkout of the project.
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
# Extras that a recipe may need, with the package that each brings.
OPTIONAL = {"4bit": "bitsandbytes", "deepspeed": "deepspeed", "wandb": "wandb"}


def requirements() -> list[tuple[Requirement, str | None]]:
    """What the project requires, each with the name of its extra if it is optional.

    Read from pyproject.toml in a checkout, else from the installed package.
    """
    if PROJECT.is_file():
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        listed: list[tuple[str, str | None]] = [(text, None) for text in project["dependencies"]]
        listed += [(text, extra) for extra in OPTIONAL for text in project["optional-dependencies"][extra]]
        return [(Requirement(text), extra) for text, extra in listed]
    found: list[tuple[Requirement, str | None]] = []
    for requirement in map(Requirement, importlib.metadata.requires("llmcls") or []):
        marker = requirement.marker
        extra = next((e for e in OPTIONAL if requirement.name == OPTIONAL[e]), None)
        if extra is not None or marker is None or marker.evaluate({"extra": ""}):
            found.append((requirement, extra))
    return found


def libraries(subject: Subject) -> Finding:
    """Whether the installed versions are those that the project requires."""
    installed: dict[str, str | None] = {}
    wrong: list[Requirement] = []
    missing: list[Requirement] = []
    unused: list[Requirement] = []
    absent: list[str] = []
    for requirement, extra in requirements():
        name = requirement.name
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
            if extra is None or (extra == needed_extra(subject, name)):
                missing.append(requirement)
            elif requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                absent.append(name)
            continue
        if not requirement.specifier.contains(str(installed[name]), prereleases=True):
            (wrong if extra is None or extra == needed_extra(subject, name) else unused).append(requirement)
    if wrong or missing:
        found = [f"{r.name} {installed[r.name]} is installed, {r.specifier} is required" for r in wrong]
        found += [f"{r.name} is not installed" for r in missing]
        install = " ".join(f"'{r.name}{r.specifier}'" for r in [*wrong, *missing])
        return fault("; ".join(found), f"run `pip install --upgrade {install}`", installed=installed)
    shown = ", ".join(f"{n} {installed[n]}" for n in ("torch", "transformers", "peft", "accelerate"))
    fitting = sum(number is not None for number in installed.values()) - 4 - len(unused)
    words = f"{shown} and {fitting} more fit" + (f"; not installed (optional): {', '.join(absent)}" if absent else "")
    if unused:
        names = ", ".join(f"{r.name} {installed[r.name]} ({r.specifier} is required)" for r in unused)
        return warning(f"{words}; not fitting: {names}", "upgrade it before you use it", installed=installed)
    return ok(words, installed=installed)


def needed_extra(subject: Subject, package: str) -> str | None:
    """The extra through which the recipe needs a package, or None."""
    if subject.recipe is None:
        return None
    if package == "bitsandbytes" and subject.recipe.model.use_4bit:
        return "4bit"
    return "wandb" if package == "wandb" and "wandb" in subject.recipe.train.report_to else None
