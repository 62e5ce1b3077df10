"""Parts of the project whose packages need not be installed: one sentence says what is missing when they are used."""

from __future__ import annotations

from types import TracebackType

from llmcls.common.user_error import UserError


class OptionalImport:
    """A block of imports that may fail because a package is not installed.

    Parameters
    ----------
    what : str
        What needs the package, as the beginning of a sentence: "serving".
    extra : str
        The extra of llmcls that installs it: "serve".

    Examples
    --------
    >>> needed = OptionalImport("serving", "serve")
    >>> with needed:
    ...     import uvicorn
    >>> needed.require()
    """

    def __init__(self, what: str, extra: str) -> None:
        self.what, self.extra = what, extra
        self.missing: str | None = None

    def __enter__(self) -> OptionalImport:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> bool:
        # A module of llmcls that does not exist is a defect, not a missing package.
        if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] == "llmcls":
            return False
        self.missing = error.name
        return True

    def require(self) -> None:
        """Refuse to continue without the package.

        Raises
        ------
        UserError
            If it is missing.
        """
        if self.missing:
            raise UserError(
                f"{self.what} needs {self.missing}, which is not installed; run: pip install 'llmcls[{self.extra}]'"
            )
