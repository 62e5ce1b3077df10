"""Reuters-21578 as it is distributed: documents of the ModApte split out of reut2-*.sgm files."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmcls.common.user_error import UserError

_DOCUMENT = re.compile(r"<REUTERS (?P<attributes>[^>]*)>(?P<inside>.*?)</REUTERS>", re.S)


def read_sgml(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield uid, title, body, labels (topics) and split ("train" or "test") of each ModApte document, in file order.

    The ModApte split (README of the collection, section VIII.B): TOPICS="YES" with LEWISSPLIT "TRAIN" or "TEST";
    everything else is unused.

    Raises
    ------
    UserError: the folder holds no such files.
    """
    files = sorted(folder.glob("reut2-*.sgm"))
    if not files:
        raise UserError(f"{folder} holds no reut2-*.sgm; unpack reuters21578.tar.gz there")
    for path in files:
        # The files are Latin-1 with a stray control byte or two.
        text = path.read_text(encoding="latin-1")
        for match in _DOCUMENT.finditer(text):
            attributes = dict(re.findall(r'(\w+)="([^"]*)"', match["attributes"]))
            split = {"TRAIN": "train", "TEST": "test"}.get(attributes.get("LEWISSPLIT", ""))
            if attributes.get("TOPICS") != "YES" or split is None:
                continue
            inside = match["inside"]
            body = _element(inside, "BODY")
            if body is None:
                # Brief items have their words in TEXT itself.
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
    found = re.search(rf"<{name}(?: [^>]*)?>(.*?)</{name}>", text, re.S)
    return found[1] if found else None


def _clean(text: str) -> str:
    """Entities read, control characters gone, the closing "Reuter" line dropped, white space single."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", " ", html.unescape(text))
    text = re.sub(r"&#\d+;", " ", text)
    text = re.sub(r"\s*\b(Reuter|REUTER)\s*$", "", text.rstrip())
    return " ".join(text.split())
