from __future__ import annotations

import pytest

from llmcls.common.optional import OptionalImport
from llmcls.common.user_error import UserError


def test_a_missing_package_is_named_only_when_it_is_used() -> None:
    needed = OptionalImport("serving", "serve")
    with needed:
        import a_package_that_is_not_installed  # noqa: F401
    with pytest.raises(UserError, match=r"serving needs a_package_that_is_not_installed, .*'llmcls\[serve\]'"):
        needed.require()


def test_what_is_installed_is_not_refused() -> None:
    needed = OptionalImport("serving", "serve")
    with needed:
        import json  # noqa: F401
    needed.require()


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ModuleNotFoundError), OptionalImport("serving", "serve"):
        import llmcls.nowhere  # noqa: F401
    with pytest.raises(ZeroDivisionError), OptionalImport("serving", "serve"):
        _ = 1 / 0
