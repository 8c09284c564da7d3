"""Every rule has a differential case, and every case gives what eager torch gives: one compiled module a group of overloads."""

from __future__ import annotations

import pytest
from cases import BY_FAMILY, ELSEWHERE, calls
from overloads import check_calls

from fxhlo.lowering.registry import rules

TESTED = sorted(name for name in rules() if name.split(".")[0] in ("aten", "prims"))
SIZE = 16
GROUPS = [TESTED[start : start + SIZE] for start in range(0, len(TESTED), SIZE)]


def family_of(overload: str) -> str:
    """The file of lowering/ops/ that has the overload's rule, without its extension."""
    return rules()[overload].__module__.rpartition(".")[2]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group[0]}..{group[-1]}")
def test_rules_compute_what_eager_torch_does(group: list[str]) -> None:
    check_calls([call for overload in group for call in calls(overload)])


@pytest.mark.parametrize("overload", TESTED)
def test_every_rule_has_a_case(overload: str) -> None:
    family = family_of(overload)
    assert next(calls(overload), None), (
        f"{overload} has a rule in lowering/ops/{family}.py, but no case that eager torch runs: add a row to tests/lowering/cases/{family}.py"
    )


def test_every_case_stands_with_its_rules_family() -> None:
    placed = {overload: family for family, cases in BY_FAMILY.items() for overload in cases}
    gone = [f"{overload} (cases/{family}.py)" for overload, family in placed.items() if overload not in rules()]
    assert not gone, f"cases of overloads that have no rule: {', '.join(gone)}"
    moved = [
        f"{overload} stands in cases/{family}.py, its rule in lowering/ops/{family_of(overload)}.py"
        for overload, family in placed.items()
        if family != family_of(overload)
    ]
    assert not moved, "\n".join(moved)


def test_rules_of_other_packages_ops_are_tested_elsewhere() -> None:
    ours = {name for name, rule in rules().items() if rule.__module__.startswith("fxhlo.")}  # tests register rules too
    others = {name for name in ours if name.split(".")[0] not in ("aten", "prims", "higher_order", "fxhlo")}
    missing, gone = sorted(others - set(ELSEWHERE)), sorted(set(ELSEWHERE) - others)
    assert not missing, f"say in ELSEWHERE of tests/lowering/cases/__init__.py which file tests {', '.join(missing)}"
    assert not gone, f"ELSEWHERE names overloads without a rule: {', '.join(gone)}"
