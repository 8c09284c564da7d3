"""The contract: everything that cannot be emitted is said at once, with counts and places."""

from __future__ import annotations

import pytest
import torch

from fxhlo.lowering.capture.exporting import capture
from fxhlo.lowering.emit.coverage import check
from fxhlo.lowering.lower import lower
from fxhlo.passes.contract import ContractError


@torch.library.custom_op("fxhlo_test::twist", mutates_args=())
def twist(values: torch.Tensor) -> torch.Tensor:
    return values.flip(0).clone()


@twist.register_fake
def _(values: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(values)


class Unknown(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        once = twist(values)
        return twist(once) + torch.bucketize(values, values).sum() * 0 + twist(values * 2)  # the line of the last one


def test_missing_rules_are_listed_with_count_and_place() -> None:
    with pytest.raises(ContractError) as caught:
        lower(Unknown(), (torch.rand(4),))
    missing = {entry.overload: entry for entry in caught.value.missing}
    assert missing["fxhlo_test.twist.default"].count == 3
    assert missing["fxhlo_test.twist.default"].where.startswith(__file__)
    assert "docs/add_an_op.md" in str(caught.value)


def test_a_finished_program_passes() -> None:
    check(capture(torch.nn.Linear(3, 4), (torch.rand(2, 3),)))


class Refused(torch.nn.Module):
    """Two rules refuse, one of them in a region of control flow, and the result hangs on both."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        def assigned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.index_put(x, [x > 0], y)

        chosen = torch.cond(x.sum() > 0, assigned, lambda x, y: x + 1, (x, y))
        return (chosen + x.to(torch.complex32).abs()).softmax(0)


def test_what_rules_refuse_is_listed_at_once_too() -> None:
    with pytest.raises(ContractError) as caught:
        lower(Refused(), (torch.rand(4), torch.rand(4)))
    reasons = {entry.overload: entry.reason for entry in caught.value.missing}
    assert "one value per True element" in reasons["aten.index_put.default"]
    assert "complex32 has no StableHLO element type" in reasons["aten._to_copy.default"]
    assert len(reasons) == 2, "what hangs on them is no reason of its own"
