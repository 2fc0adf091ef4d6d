"""Every operator in every engine but the C simulation: the same bits as torch, or a refusal that `check` gives before training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

import pquant_fx as pq
from pquant_fx.lower.hls4ml.convert import check
from tests.op_cases import ENGINES, HLS, frozen, load_cases
from tests.op_simulation import groups

CASES = load_cases()
REFUSED = [name for name, case in CASES.items() if case.refused]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.expected("integer") == "exact"])
def test_what_is_exact(name: str) -> None:
    case = CASES[name]
    engines = [e for e in ENGINES if e not in HLS and case.expected(e) == "exact"]
    report = frozen(name).verify(case.inputs(), tuple(engines))
    assert report.ok, str(report)
    assert [row.engine.split()[0] for row in report.rows if row.different == 0][-len(engines) :] == engines  # qonnx float64
    values = tree_leaves(frozen(name)(*case.inputs()))
    assert any(len(torch.unique(v)) > 3 for v in values), "the samples must move the outputs"
    for io_type in HLS:
        problems = check(frozen(name).to_qonnx(), io_type)
        assert (problems[0].code if problems else "exact") == case.expected(io_type), str(problems)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_before_training(name: str) -> None:
    case = CASES[name]
    for engine, code in case.refused.items():
        target, options = ("hls4ml", {"io_type": engine}) if engine in HLS else (engine, {})
        report = pq.check(case.model(), case.inputs(8), target=target, **options)
        (problem, *_) = [p for p in report.problems if p.severity == "error"]
        assert problem.code == code, str(problem)
        assert problem.remedy
        assert problem.place.node


def test_the_list_is_long_and_every_exact_case_is_simulated() -> None:
    exact = [name for name, case in CASES.items() if case.expected("io_parallel") == "exact"]
    assert len(exact) >= 45
    for io_type in HLS:
        simulated = [name for group in groups(io_type) for name in group]
        assert sorted(simulated) == sorted(name for name, case in CASES.items() if case.expected(io_type) == "exact")


def test_engines_know_the_codes_of_each_case() -> None:
    for case in CASES.values():
        assert set(case.refused) <= set(ENGINES), case.name
        assert all(code.startswith("PQ") for code in case.refused.values()), case.name
        assert all(np.prod(shape) < 100 for shape in case.shapes), "small, so that the C simulation stays quick"
