from __future__ import annotations

import pytest

from llmcls.common.user_error import UserError
from llmcls.tune import main


def test_without_its_library_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcls.tune.SEARCHING.missing", "optuna")
    with pytest.raises(UserError, match=r"a search needs optuna, .* pip install 'llmcls\[tune\]'"):
        main(["recipe.yaml", "--space", "space.yaml"])
