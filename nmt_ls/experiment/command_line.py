"""The command-line funnel: the one place where a user's mistake becomes one `error: …` line and exit status 2."""

from __future__ import annotations


class UserError(ValueError):
    """What the user did wrong: one line that says what, where (file, line or key) and what to do about it."""
