"""What every refusal owes its user: an error of ours with a code, the module, the user's line and something to do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pquant_fx.errors import PQuantError, Problem


def line_of(thing: Any, text: str = "") -> str:
    """`file.py:line` of the first source line of a function or class that contains `text`, as errors name it."""
    lines, start = inspect.getsourcelines(thing)
    at = next(n for n, line in enumerate(lines) if text in line)
    return f"{Path(inspect.getsourcefile(thing) or '').name}:{start + at}"


def refused(call: Callable[[], Any], kind: type[PQuantError], code: str, what: str = "", remedy: str = r"\w{3}") -> PQuantError:
    """Run `call`, which must raise `kind`; its first problem has `code`, and texts that match `what` and `remedy`."""
    with pytest.raises(PQuantError) as caught:
        call()
    assert type(caught.value) is kind or kind in type(caught.value).__mro__[:2], repr(caught.value)
    assert code in str(caught.value)
    check(caught.value.problems[0], code, what, remedy)
    return caught.value


def check(problem: Problem, code: str, what: str = "", remedy: str = r"\w{3}") -> None:
    assert problem.code == code, str(problem)
    assert re.search(what, problem.what), problem.what
    assert re.search(remedy, problem.remedy), problem.remedy


def at(error: PQuantError | Problem) -> tuple[str | None, str | None]:
    """Module path and line of the first problem."""
    problem = error if isinstance(error, Problem) else error.problems[0]
    return problem.place.module, problem.place.line
