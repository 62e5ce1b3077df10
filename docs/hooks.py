"""MkDocs hook: fills in the parts of the pages that are owned by a file elsewhere, so that they stay up to date.

Two markers, each alone on a line:

``<!-- recipe-reference -->`` is replaced by a table of all recipe keys, from the dataclasses in
`llmcls.recipe.schema`. ``<!-- include FILE -->`` and ``<!-- include FILE # SECTION -->`` are replaced by a Markdown
file of the repository, or by its section under the heading ``## SECTION``.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

from mkdocs.exceptions import PluginError

from llmcls.recipe.schema import SECTIONS

ROOT = Path(__file__).resolve().parent.parent

REFERENCE = "<!-- recipe-reference -->"
INCLUDE = re.compile(r"^<!-- include (?P<file>\S+?)(?: # (?P<section>.+?))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page; MkDocs calls this with each page's Markdown."""
    if REFERENCE in markdown:
        markdown = markdown.replace(REFERENCE, recipe_reference())
    return INCLUDE.sub(lambda found: included(found["file"], found["section"]), markdown)


def recipe_reference() -> str:
    """Every recipe key as Markdown: a heading and a table for each section.

    Raises
    ------
    PluginError
        A field has no text under ``metadata["doc"]``.
    """
    lines: list[str] = []
    for section, kind in SECTIONS.items():
        hints = typing.get_type_hints(kind)
        lines += [f"### {section}", "", _first_paragraph(kind), ""]
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
        for field in dataclasses.fields(kind):
            text = field.metadata.get("doc")
            if not text:
                raise PluginError(f"llmcls/recipe/schema.py: {kind.__name__}.{field.name} has no metadata['doc']")
            cells = [f"`{field.name}`", type_in_words(hints[field.name]), default_in_words(field), text]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def type_in_words(hint: Any) -> str:
    """What a value of this type looks like in a recipe, as Markdown.

    Examples
    --------
    >>> type_in_words(Literal["head", "head_tail"] | None)
    '`head` or `head_tail`'
    >>> type_in_words(list[int])
    'list of whole numbers'
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_in_words(a) for a in arguments if a is not type(None))
    if origin is Literal:
        words = [f"`{value}`" for value in arguments]
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is list:
        plural = {str: "texts", int: "whole numbers", float: "numbers"}.get(arguments[0])
        return f"list of {plural or type_in_words(arguments[0])}"
    if origin is dict:
        return f"`name: {type_in_words(arguments[1])}` lines"
    return {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}[hint]


def default_in_words(field: dataclasses.Field[Any]) -> str:
    """The default of a recipe key in YAML, as Markdown: "–" for null, "required" if there is none."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "required"
    else:
        value = field.default
    return "–" if value is None else f"`{_yaml(value)}`"


def included(file: str, section: str | None) -> str:
    """A Markdown file of the repository, or one of its second-level sections, for use inside a page.

    Links to pages under ``docs/`` are made relative to it. A section comes without its heading.

    Raises
    ------
    PluginError
        The file, or the section in it, does not exist.
    """
    path = ROOT / file
    if not path.is_file():
        raise PluginError(f"include of {file}: there is no such file")
    text = path.read_text(encoding="utf-8")
    if section is not None:
        found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        if found is None:
            raise PluginError(f"include of {file}: it has no section '## {section}'")
        text = found[1].strip()
    return text.replace("](docs/", "](")


def _first_paragraph(kind: type) -> str:
    return " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_yaml(v) for v in value)}]"
    # The line break of text_separator, as YAML writes it.
    return f'"{value}"'.replace("\n", "\\n") if isinstance(value, str) and not value.strip() else str(value)


def _cell(text: str) -> str:
    # Inside code, Python-Markdown shows a backslash before a bar and needs none.
    parts = " ".join(text.split()).split("`")
    return "`".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts))
