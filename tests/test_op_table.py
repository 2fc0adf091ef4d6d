"""The README's table of operators is what the cases say."""

from __future__ import annotations

import pytest

from tests import op_table
from tests.op_cases import Case, load_cases
from tests.op_table import README, table, with_table


def test_the_readme_holds_the_table() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text, "run: python -m tests.op_table --write"


def test_every_operator_stands_in_one_row_with_an_answer_of_each_engine() -> None:
    head, _, *rows = table().splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert {len(row) for row in cells} == {len(head.strip("|").split("|"))} == {6}
    named = [(row[0].split(": ", 1)[0], operator) for row in cells for operator in row[0].split(": ", 1)[1].split("; ")]
    assert sorted(named) == sorted({(case.family, case.operator) for case in load_cases().values()})
    assert all(cell == "exact" or cell.startswith("PQ") for row in cells for cell in row[1:])


def test_an_operator_of_two_minds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    one = next(iter(load_cases().values()))
    other = Case(one.family, one.operator, "other", one.build, one.shapes, {"io_stream": "PQ202"})
    monkeypatch.setattr(op_table, "load_cases", lambda: {"one": one, "other": other})
    with pytest.raises(ValueError, match="give it two names"):
        table()
