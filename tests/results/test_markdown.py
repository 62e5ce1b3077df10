from __future__ import annotations

import html

import markdown
import pytest

from llmcls.results.markdown import code_block, escaped, table

HOSTILE = [
    "<script>alert(1)</script>", "[a](javascript:alert(1))", "![x](http://evil/x.png)", "a|b|c", "`code`",
    "*bold* _it_", "www.evil.com", "user@evil.com", "https://evil.com", "&lt;b&gt;", "\\|", "line\n\n# heading",
    "<!-- x", "[^1]",
    "_a_", "a_b", "Größe 漢字", "- item", "1. item", "$x^2$", ":smile:", "~~gone~~",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    page = markdown.markdown(f"Label {escaped(name)} end.", extensions=["extra", "pymdownx.magiclink"])
    inside = page.removeprefix("<p>").removesuffix("</p>")
    assert page.startswith("<p>")
    assert "<" not in inside, "no markup but the paragraph"
    assert html.unescape(inside) == f"Label {' '.join(name.split())} end."


def test_what_cannot_be_printed_is_left_out() -> None:
    assert escaped("a\u202eb\x00c\u200bd") == "a b c d"


def test_a_cell_stays_in_its_cell() -> None:
    page = markdown.markdown(table(["label", "rows"], [["a|b", "1"], ["<td>", "2"]]), extensions=["tables"])
    assert page.count("<td") == 4
    assert "<td>a&#124;b</td>" in page


def test_code_cannot_end_its_block() -> None:
    page = markdown.markdown(code_block("bash", "echo\n```\n<b>````\n# no heading"), extensions=["fenced_code"])
    assert page.count("<pre>") == 1
    assert "<h1>" not in page
    assert code_block("yaml", "a: 1\n") == "```yaml\na: 1\n```"
