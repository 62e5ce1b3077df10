from __future__ import annotations

from pathlib import Path

import llmcls.results
from llmcls.results.cells import BASELINE_NAMES
from llmcls.results.glossary import GLOSSARY


def test_baselines_are_explained_in_sentences() -> None:
    assert set(BASELINE_NAMES) <= set(GLOSSARY)
    assert all(meaning.endswith(".") and len(meaning) > 30 for _, meaning in GLOSSARY.values())


def test_every_word_is_used_by_a_template_or_names_a_baseline() -> None:
    text = "".join(p.read_text(encoding="utf-8") for p in (Path(llmcls.results.__path__[0]) / "templates").iterdir())
    unused = {name for name in GLOSSARY if f'term("{name}"' not in text} - set(BASELINE_NAMES)
    assert unused <= {"accuracy", "loss", "micro", "macro", "noise", "epoch", "baseline"}
