"""Reads the documents of the ModApte split of Reuters-21578 from the reut2-*.sgm files of its distribution."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmcls.common.user_error import UserError

_DOCUMENT = re.compile(r"<REUTERS (?P<attributes>[^>]*)>(?P<inside>.*?)</REUTERS>", re.S)


def read_sgml(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the documents of the ModApte split, in file order.

    Parameters
    ----------
    folder : Path
        The folder of the reut2-*.sgm files.

    Yields
    ------
    dict
        "uid", "title", "body", "labels" (the list of topics) and "split" ("train" or "test").

    Raises
    ------
    UserError
        If the folder contains no such files.

    Notes
    -----
    The ModApte split (README of the collection, section VIII.B) consists of the documents with TOPICS="YES" and
    LEWISSPLIT "TRAIN" or "TEST". All other documents are unused.
    """
    files = sorted(folder.glob("reut2-*.sgm"))
    if not files:
        raise UserError(f"{folder} contains no reut2-*.sgm files; unpack reuters21578.tar.gz there")
    for path in files:
        # The files are Latin-1, with a few control characters.
        text = path.read_text(encoding="latin-1")
        for match in _DOCUMENT.finditer(text):
            attributes = dict(re.findall(r'(\w+)="([^"]*)"', match["attributes"]))
            split = {"TRAIN": "train", "TEST": "test"}.get(attributes.get("LEWISSPLIT", ""))
            if attributes.get("TOPICS") != "YES" or split is None:
                continue
            inside = match["inside"]
            body = _element(inside, "BODY")
            if body is None:
                # Documents without a BODY element, such as briefs, have their text directly in TEXT.
                body = re.sub(
                    r"<(TITLE|DATELINE|AUTHOR)>.*?</\1>|<[^>]*>", " ", _element(inside, "TEXT") or "", flags=re.S
                )
            yield {
                "uid": attributes["NEWID"],
                "title": _clean(_element(inside, "TITLE") or ""),
                "body": _clean(body),
                "labels": [html.unescape(t) for t in re.findall(r"<D>(.*?)</D>", _element(inside, "TOPICS") or "")],
                "split": split,
            }


def _element(text: str, name: str) -> str | None:
    """The contents of the first element with a name, or None."""
    match = re.search(rf"<{name}(?: [^>]*)?>(.*?)</{name}>", text, re.S)
    return match[1] if match else None


def _clean(text: str) -> str:
    """Decode entities, remove control characters and the final "Reuter", and collapse white space."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", " ", html.unescape(text))
    text = re.sub(r"&#\d+;", " ", text)
    text = re.sub(r"\s*\b(Reuter|REUTER)\s*$", "", text.rstrip())
    return " ".join(text.split())
