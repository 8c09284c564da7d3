"""Every rule has a differential case, and every case gives what eager torch gives: one compiled module a group of overloads."""

from __future__ import annotations

import pytest
from cases import CASES, ELSEWHERE, calls
from overloads import check_calls

from fxhlo.lowering.registry import rules

TESTED = sorted(name for name in rules() if name.split(".")[0] in ("aten", "prims"))
SIZE = 16
GROUPS = [TESTED[start : start + SIZE] for start in range(0, len(TESTED), SIZE)]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group[0]}..{group[-1]}")
def test_rules_compute_what_eager_torch_does(group: list[str]) -> None:
    check_calls([call for overload in group for call in calls(overload)])


@pytest.mark.parametrize("overload", TESTED)
def test_every_rule_has_a_case(overload: str) -> None:
    assert next(calls(overload), None), f"{overload} has a rule, but no case that eager torch runs: add one to cases.py"


def test_no_case_is_of_a_rule_that_is_gone() -> None:
    assert not set(CASES) - set(rules())


def test_rules_of_other_packages_ops_are_tested_elsewhere() -> None:
    ours = {name for name, rule in rules().items() if rule.__module__.startswith("fxhlo.")}  # tests register rules too
    others = {name for name in ours if name.split(".")[0] not in ("aten", "prims", "higher_order", "fxhlo")}
    assert others == set(ELSEWHERE)
