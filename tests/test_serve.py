from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llmcls import serve
from llmcls.common.user_error import UserError
from llmcls.results.run_folder import RunFolder
from llmcls.serve import main, read_key, run_names
from tests.conftest import Experiment
from tests.helpers import refusal

KEY = "0123456789abcdef"


@pytest.fixture
def _harmless_signal() -> Iterator[None]:
    """A signal that arrives when no server runs does not end the tests."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_harmless_signal")
def test_the_command_serves_several_runs_until_it_is_stopped(
    trained_once: Experiment, tmp_path: Path, log_lines: list[str]
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n", encoding="utf-8")
    found: list[httpx.Response] = []
    frozen: list[int] = []
    before = gc.get_freeze_count()

    def client() -> None:
        try:
            for _ in range(6000):
                if url := re.search(r"http://127.0.0.1:\d+", "\n".join(log_lines)):
                    break
                time.sleep(0.01)
            assert url is not None
            frozen.append(gc.get_freeze_count())
            headers = {"Authorization": f"Bearer {KEY}"}
            for request in ({"texts": ["a novel"]}, {"texts": ["a novel", "b"], "run": "run_1", "top_k": 1}):
                found.append(httpx.post(f"{url[0]}/classify", json=request, headers=headers, timeout=60))
            found.append(httpx.post(f"{url[0]}/classify", json={"texts": ["a novel"]}, timeout=60))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    arguments = ["--run", *map(str, trained_once.runs), "--port", "0", "--api-key-file", str(tmp_path / "key")]
    main([*arguments, "--batch-tokens", "50"])
    thread.join()
    assert [response.status_code for response in found] == [200, 200, 401]
    assert found[0].json()["run"] == "run_0"
    # What is loaded is no garbage, and is not searched for any while the server runs.
    assert frozen[0] > before
    assert [len(result["probabilities"]) for result in found[1].json()["results"]] == [1, 1]
    assert log_lines[-1] == "stopped"
    assert KEY not in "\n".join(log_lines)


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.KEY, raising=False)
    assert read_key(None) is None
    monkeypatch.setenv(serve.KEY, KEY)
    assert read_key(None) == KEY
    (tmp_path / "key").write_text(f"{KEY * 2}\n", encoding="utf-8")
    assert read_key(str(tmp_path / "key")) == KEY * 2


@pytest.mark.parametrize("key", ["", "short", "with a space in it", "nicht-englisch-ä", "two\nlines-of-a-key"])
def test_a_key_that_cannot_be_used_is_refused_and_not_shown(key: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(key, encoding="utf-8")
    with pytest.raises(UserError, match="must be at least 16 ASCII characters without a space") as refused:
        read_key(str(tmp_path / "key"))
    assert not key or key not in str(refused.value)


def test_runs_get_the_shortest_names_that_tell_them_apart() -> None:
    def names(*folders: str) -> list[str]:
        return run_names([RunFolder(Path(folder)) for folder in folders])

    assert names("/o/m/d/run_0") == ["run_0"]
    assert names("/o/m/d/run_0", "/o/m/d/run_1") == ["run_0", "run_1"]
    assert names("/o/m/d/run_0", "/o/m/e/run_0") == ["d/run_0", "e/run_0"]
    with pytest.raises(UserError, match="names a folder twice"):
        names("/o/m/d/run_0", "/o/m/d/../d/run_0")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--run", "nowhere"], "nowhere is not a run folder"),
        (["--run", "nowhere", "--max-texts", "0"], "--max-texts is 0; it must be 1 or more"),
        (
            ["--run", "nowhere", "--api-key-file", "missing"],
            "--api-key-file: missing cannot be read: FileNotFoundError",
        ),
    ],
)
def test_what_cannot_be_served_is_said(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sentence in refusal(capsys, "serve", *arguments)


def test_without_its_libraries_it_says_how_to_install_them(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("llmcls.serve", "llmcls.serving.server"):
        monkeypatch.delitem(sys.modules, name)
    assert "serving needs uvicorn, which is not installed; run: pip install 'llmcls[serve]'" in refusal(
        capsys, "serve", "--run", "x"
    )
