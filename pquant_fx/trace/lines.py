"""The user's line: which frame of the Python stack a message points to."""

from __future__ import annotations

import linecache
import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType, TracebackType

import torch

__all__ = ["Lines"]

_GENERATED = ("<frozen", "<string>", "<eval_with_key>", "<attrs")


class Lines:
    """Finds the innermost frame that is neither torch's, Python's own nor ours, up to the frame where tracing began."""

    def __init__(self, begin: CodeType) -> None:
        self._begin = begin
        self._users: dict[CodeType, bool] = {}
        ours = Path(__file__).parents[1]
        self._foreign = (str(Path(torch.__file__).parent), str(ours / "trace"), str(ours / "graph"), str(ours / "quantize"), *_GENERATED)
        self._python = sysconfig.get_paths()["stdlib"]

    def here(self) -> str | None:
        """`file.py:line` of the user's code that is running, None when there is none (a model made of torch's modules)."""
        frame = self._frame()
        return None if frame is None else _text(frame.f_code, frame.f_lineno)

    def source(self) -> str:
        """The text of that line, for messages."""
        frame = self._frame()
        return "" if frame is None else linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()

    def of_exception(self, trace: TracebackType | None) -> str | None:
        """The innermost user's line that an exception passed through."""
        found, inside = None, False
        while trace is not None:
            code = trace.tb_frame.f_code
            if inside and self._is_user(code):
                found = _text(code, trace.tb_lineno)
            inside = inside or code is self._begin
            trace = trace.tb_next
        return found

    def _frame(self) -> FrameType | None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not self._begin:
            if self._is_user(frame.f_code):
                return frame
            frame = frame.f_back
        return None

    def _is_user(self, code: CodeType) -> bool:
        known = self._users.get(code)
        if known is None:
            name = code.co_filename
            python = name.startswith(self._python) and "site-packages" not in name
            known = self._users[code] = not (python or name.startswith(self._foreign))
        return known


def _text(code: CodeType, line: int) -> str:
    return f"{Path(code.co_filename).name}:{line}"
