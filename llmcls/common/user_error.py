"""The exception for mistakes that the user can correct."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can correct: the message says what is wrong, where, and what to do."""
