from __future__ import annotations

import pytest

from llmcls.common.user_error import UserError


def test_it_is_no_error_that_code_around_a_library_call_would_catch() -> None:
    # Otherwise `except (OSError, ValueError)` would replace a clear sentence by a vague one.
    assert UserError.__bases__ == (Exception,)
    with pytest.raises(UserError, match=r"^recipe\.yaml: train\.batch_size is 0$"):
        raise UserError("recipe.yaml: train.batch_size is 0")
