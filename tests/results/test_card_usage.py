from __future__ import annotations

import ast
import re
import shlex

import pytest

from llmcls.results.card_usage import Home, usage

HOMES = [
    Home("outputs/tiny/it's `x` $(rm)/run_0"),
    Home("user/name", on_hub=True),
    Home("out dir", exported=True),
    Home("user/name", on_hub=True, exported=True),
    Home("a graph", exported=True, onnx=True),
]


@pytest.mark.parametrize("home", HOMES, ids=["run", "hub", "exported", "exported on the hub", "graph"])
def test_there_are_five_ways_that_can_be_copied(home: Home) -> None:
    page = "\n\n".join(usage(home))
    assert len(re.findall("^### ", page, re.MULTILINE)) == 5
    blocks = re.findall(r"^(`{3,})(\w+)\n(.*?)\n\1$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    for _, language, code in blocks:
        if language == "python":
            ast.parse(code)
        for line in code.splitlines() if language == "bash" else ():
            words = shlex.split(line)
            assert words[0] in ("python", "hf", "curl")
            if "--run" in words and not home.exported:
                folder = words[words.index("--run") + 1]
                assert folder == ("name" if home.on_hub else home.name), "a name is one word of the shell"
