"""Pages of reports: templates filled with what was found, everything escaped, with style and script inside."""

from __future__ import annotations

import math
import re
from functools import cache
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmcls.results.glossary import GLOSSARY
from llmcls.results.report_tables import spoken_time


def render(template: str, **found: Any) -> str:
    """A page.

    Parameters
    ----------
    template : str
        A file of ``llmcls/results/templates``.
    **found
        What it shows. Texts are escaped.
    """
    return _environment().get_template(template).render(**found)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("llmcls.results"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals |= {"glossary": GLOSSARY, "inside": lambda name: Markup(_source(name))}
    environment.filters |= {
        "number": number,
        "percent": percent,
        "spoken_time": spoken_time,
        "code": code,
        "breakable": breakable,
    }
    return environment


def _source(name: str) -> str:
    """The text of a template file, which is part of the project and needs no escaping."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def number(value: float | None, digits: int = 3) -> str:
    """A number of a report; a dash if it is undefined.

    Examples
    --------
    >>> number(0.81249), number(1234), number(None), number(0.00012)
    ('0.812', '1,234', '–', '0.000')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def percent(value: float | None) -> str:
    """A share of 1 as the length of a bar.

    Examples
    --------
    >>> percent(0.8125), percent(None), percent(-0.1)
    ('81.2%', '0%', '0%')
    """
    return f"{min(max(value or 0.0, 0.0), 1.0) * 100:.3g}%"


def code(sentence: str) -> Markup:
    """A sentence, escaped, whose parts between backticks are code.

    Examples
    --------
    >>> code("see `llmcls errors` & more")
    Markup('see <code>llmcls errors</code> &amp; more')
    """
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", escape(sentence)))


def breakable(name: str) -> Markup:
    """A name, escaped, that may continue on the next line after "_", "/" and "-".

    Examples
    --------
    >>> breakable("card_arrival")
    Markup('card_<wbr>arrival')
    """
    return Markup(re.sub(r"(?<=[_/-])(?=\w)", "<wbr>", escape(name)))
