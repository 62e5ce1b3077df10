from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.data.csv_encoding import find_encoding


@pytest.mark.parametrize(
    "content, given, insist, encoding",
    [
        ("text\nGrüße\n".encode(), None, True, "utf-8-sig"),
        ("text\nGrüße\n".encode("utf-16"), None, True, "utf-16"),
        ("text\nGrüße\n".encode("utf-32"), None, True, "utf-32"),
        ("text\nGrüße\n".encode("utf-16-be"), None, True, "utf-16-be"),
        ("text\nGrüße\n".encode("utf-8-sig"), "utf-8", True, "utf-8-sig"),
        ("text\nGrüße\n".encode("latin-1"), "latin-1", True, "latin-1"),
        ("text\nGrüße\n".encode("cp1250"), "cp1250", False, "cp1250"),
        ("text\nGrüße\n".encode(), "cp1250", False, "utf-8-sig"),
        ("text\nGrüße\n".encode(), "cp1250", True, "cp1250"),
    ],
)
def test_the_recipe_then_the_bytes_tell_the_encoding(
    tmp_path: Path, content: bytes, given: str | None, insist: bool, encoding: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert find_encoding(path, "data.train_csv", given, insist) == encoding


@pytest.mark.parametrize(
    "content, given, sentence",
    [
        (b"text\n" + b"abc\n" * 400_000 + b"Gr\xfc\xdfe\x81\n", None, r"is not UTF-8 \(line 400002, byte 1600007\)"),
        ("text,label\n你好嗎朋友,x\n".encode("big5"), None, r"does not look like Windows-1252; name its encoding"),
        (b"text\n\xe9\n", "utf-8", r"is not utf-8 \(byte 5: .*correct data\.encoding"),
        ("text\n".encode("utf-16") + b"a", None, "begins as utf-16, but byte 1[0-9] is not"),
    ],
)
def test_bytes_that_cannot_be_decoded_are_named_with_their_place(
    tmp_path: Path, content: bytes, given: str | None, sentence: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        find_encoding(path, "data.train_csv", given)
