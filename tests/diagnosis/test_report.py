from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from llmcls.diagnosis.checks import Check
from llmcls.diagnosis.findings import Subject, fault, ok, skipped, warning
from llmcls.diagnosis.report import document, show, verdict
from llmcls.recipe.load import load_recipe

RESULTS = [
    (Check("disk", "m:disk"), ok("90 GiB [free]"), 0.1),
    (Check("driver", "m:driver"), skipped("no NVIDIA driver"), 0.1),
    (Check("attention", "m:attention"), warning("text by text", "use Linux"), 0.1),
    (Check("compiler", "m:compiler"), fault("no compiler", "install g++"), 0.1),
]


def test_lines_that_are_not_for_a_terminal_are_plain() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    results = show(RESULTS, console)
    assert console.file.getvalue().splitlines() == [
        "ok       disk          90 GiB [free]",
        "skipped  driver        no NVIDIA driver",
        "warning  attention     text by text",
        "         -> use Linux",
        "fault    compiler      no compiler",
        "         -> install g++",
    ]
    assert verdict(results) == ["not ready: 1 fault(s)", "  compiler: install g++"]
    assert verdict(results[:3]) == ["ready, with 1 warning(s)"]
    assert verdict(results[:2]) == ["ready"]


def test_a_terminal_gets_a_table_with_everything() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    show(RESULTS, console)
    shown = console.file.getvalue()
    for text in ("90 GiB [free]", "text by text", "-> use Linux", "no compiler", "-> install g++"):
        assert text in shown


def test_the_file_has_everything_but_secrets_and_names(
    write_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    told = fault(
        "/home/alice/outputs cannot be written to with hf_secret or hf_other",
        "ask alice",
        folder="/data/alice/x",
        rate=float("nan"),
    )
    recipe = load_recipe(write_recipe(), ["model.hf_token=hf_other"])
    subject = Subject(recipe, tmp_path)
    found = document(show([(Check("files", "m:files"), told, 1.234)], Console(file=io.StringIO())), subject)
    assert found["ready"] is False
    assert found["variables"]["OMP_NUM_THREADS"] == "3"
    assert "HF_TOKEN" not in found["variables"]
    assert found["checks"] == [
        {
            "name": "files", "status": "fault", "found": "~/outputs cannot be written to with *** or ***",
            "advice": "ask alice", "seconds": 1.23, "details": {"folder": "/data/USER/x", "rate": "nan"},
        }
    ]  # fmt: skip
    assert found["recipe"]["model"]["model_name"] == "tiny-llama"
    assert set(found["recipe"]) == {"model", "train"}
    assert "hf_" not in str({key: value for key, value in found.items() if key != "recipe"})
