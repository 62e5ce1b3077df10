"""Importing libraries that compile functions, without importing the compiler."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def compiling_late() -> Iterator[None]:
    """While libraries are imported, let `torch.compile` prepare a function at its first call and not at once.

    bitsandbytes, which peft imports, decorates functions with it, and most runs call none of them. torch compiles at
    the first call anyway, but imports its compiler before, which takes one to two seconds.
    """
    compile_now = torch.compile

    def compile_late(model: Callable[..., Any] | None = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile_late, **options)

        @functools.cache
        def compiled() -> Callable[..., Any]:
            return compile_now(model, **options)

        @functools.wraps(model)
        def call(*arguments: Any, **named: Any) -> Any:
            return compiled()(*arguments, **named)

        return call

    torch.compile = compile_late
    try:
        yield
    finally:
        torch.compile = compile_now
