"""The encoding of a text table: what the recipe says, or what the bytes say."""

from __future__ import annotations

import codecs
import logging
from pathlib import Path

from llmcls.common.user_error import UserError

log = logging.getLogger(__name__)

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_CHUNK = 1 << 20
WESTERN = "cp1252"
# Above this share of letters beyond ASCII, a text is not in a Western language.
_MOST_ACCENTS = 1 / 3


def find_encoding(path: Path, key: str, given: str | None = None, insist: bool = True) -> str:
    """The encoding of a CSV or TSV file, as Python names it.

    Parameters
    ----------
    path : Path
    key : str
        The recipe key or option that names the file, for error messages.
    given : str, optional
        ``data.encoding``. Without it: a byte order mark, then UTF-8, then Windows-1252, which is said.

    insist : bool
        Whether ``given`` must hold, or is only used where the file is not UTF-8.

    Raises
    ------
    UserError
        If the file cannot be decoded, or nothing tells its encoding.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    found = marked or _wide(head)
    # The codec without the mark in its name would take the mark for a letter.
    if given and insist and not (marked and marked.startswith(codecs.lookup(given).name[:6])):
        found = given
    failed = _first_failure(path, found or "utf-8-sig")
    if failed is None:
        return found or "utf-8-sig"
    position, reason = failed
    if given and not insist and not found:
        return given
    if given and insist:
        raise UserError(f"{key}: {path} is not {given} (byte {position}: {reason}); correct data.encoding")
    if found:
        raise UserError(f"{key}: {path} begins as {found}, but byte {position} is not ({reason}); save it as UTF-8")
    _require_western(path, key, position)
    log.warning(
        "%s: %s is not UTF-8 and is read as Windows-1252 (%s); if letters come out wrong, set data.encoding",
        key, path, WESTERN,
    )  # fmt: skip
    return WESTERN


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark, as the zeros in every second byte of Western text tell."""
    even, odd = head[::2], head[1::2]
    if len(odd) < 4 or max(even.count(0), odd.count(0)) < 0.5 * len(odd) or min(even.count(0), odd.count(0)) > 0:
        return None
    return "utf-16-le" if odd.count(0) > even.count(0) else "utf-16-be"


def _first_failure(path: Path, encoding: str) -> tuple[int, str] | None:
    """Position and reason of the first bytes that cannot be decoded. Reads the file in pieces."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeError as error:
                return position + getattr(error, "start", 0), getattr(error, "reason", str(error))
            if not chunk:
                return None
            position += len(chunk)


def _require_western(path: Path, key: str, position: int) -> None:
    """Refuse what would be read as Windows-1252 without being it.

    A file that is UTF-8 almost everywhere is damaged in one place. A text most of whose letters lie beyond ASCII is in
    another alphabet.
    """
    start = max(0, position - _CHUNK // 2)
    with path.open("rb") as file:
        before = file.read(start).count(b"\n")
        sample = file.read(_CHUNK)
        text = sample.decode("utf-8", "surrogateescape")
    strange = sum("\udc80" <= character <= "\udcff" for character in text)
    proper = sum(character > "\x7f" for character in text) - strange
    line = before + sample[: position - start].count(b"\n") + 1
    if proper > 0.5 * strange:
        raise UserError(
            f"{key}: {path} is UTF-8 but not in line {line} (byte {position}); correct that line, "
            "or name the encoding of the whole file with data.encoding"
        )
    letters = sum(character.isalpha() for character in text)
    try:
        sample.decode(WESTERN)
        # Bytes of a Western text form hardly any letters of UTF-8 by chance.
        western = strange <= _MOST_ACCENTS * (letters + strange) and proper <= 0.1 * strange
    except UnicodeDecodeError:
        western = False
    if not western:
        raise UserError(
            f"{key}: {path} is not UTF-8 (line {line}, byte {position}) and does not look like Windows-1252; "
            "name its encoding, such as data.encoding=cp1251, gb18030 or shift_jis, or save it as UTF-8"
        )
