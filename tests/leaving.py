"""How scripts exit on errors."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import pytest


def refused(main: Callable, *given: Any) -> str:
    """The message on stderr for an invalid command line, which exits with code 2."""
    said = io.StringIO()
    with pytest.raises(SystemExit) as left, redirect_stderr(said):
        main(*given)
    assert left.value.code == 2 and "error: " in said.getvalue()
    return said.getvalue()


def failed(main: Callable, *given: Any) -> str:
    """The message that a script exits with when its work fails."""
    with pytest.raises(SystemExit) as left:
        main(*given)
    assert str(left.value.code).startswith("error: ")
    return str(left.value.code)
