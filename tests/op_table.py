"""The README's table of operators, made from the cases: `python -m tests.op_table --write` puts it there.

Operators of a family that every engine answers alike share a row; what is not exact shows the code of its refusal.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.op_cases import ENGINES, Case, load_cases

__all__ = ["BEGIN", "END", "README", "table", "with_table"]

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- operators: made by python -m tests.op_table --write -->", "<!-- end of operators -->"
_HEADS = ("integer", "plain ONNX", "qonnx", "hls4ml io_parallel", "hls4ml io_stream")


def table() -> str:
    """The rows in the order of the cases; raises ValueError for an operator whose cases do not agree."""
    answers: dict[tuple[str, str], list[Case]] = {}
    for case in load_cases().values():
        answers.setdefault((case.family, case.operator), []).append(case)
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (family, operator), cases in answers.items():
        found = {tuple(case.expected(engine) for engine in ENGINES) for case in cases}
        if len(found) > 1:
            raise ValueError(f"'{operator}' is exact in some cases and refused in others: give it two names")
        rows.setdefault((family, found.pop()), []).append(operator)
    count = sum(case.expected("io_parallel") == "exact" for case in load_cases().values())
    lines = [f"| {len(load_cases())} cases, {count} of them in C simulation | {' | '.join(_HEADS)} |", f"|---|{'---|' * len(_HEADS)}"]
    lines += [f"| {family}: {'; '.join(operators)} | {' | '.join(found)} |" for (family, found), operators in rows.items()]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The text with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
