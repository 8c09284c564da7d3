"""Numbers that a model reads from its tensors stay tensors: index, arithmetic, filling, writing; as modules and as exported programs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from differential import Call, agree, check, eager, execute

import fxhlo
from fxhlo.passes.contract import ContractError
from fxhlo.passes.default import default_passes
from fxhlo.passes.fx.item_numbers import ItemNumbers

X, T = torch.randn(4, 5), torch.tensor(2)


def written(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    x[t, 1:3] = 7.0
    x[0, t] = x[1, t]
    x[:, t] += 1
    x[t] = x[None, 0]
    return x[t, :] + x[t, t]


READS = {
    "a row": lambda x, t: x[t],
    "a column": lambda x, t: x[:, t] * 2,
    "an element": lambda x, t: x[t, 1],
    "select": lambda x, t: torch.select(x, 1, t),
    "item as an index": lambda x, t: x[t.item()],
    "a product": lambda x, t: x * t.item() - x.sum().item(),
    "Python's arithmetic": lambda x, t: x + (2 * t.item() + 1) // 2 - t.item() % 2 + t.item() / 3,
    "comparisons": lambda x, t: (x > t.item(), t.item() > 1),
    "filling": lambda x, t: (
        torch.full((3,), t.item()) + x.new_full((3,), t.item()) + torch.full_like(x[0, :3], t.item())
    ),
    "a scalar of its own": lambda x, t: torch.scalar_tensor(t.item()) + x,
    "the number itself": lambda x, t: (t.item(), x.sum().item()),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("at", [2, -1])
def test_numbers_that_are_read(name: str, at: int) -> None:
    check(READS[name], X, torch.tensor(at))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("at", [2, 0, -1])
def test_writing_at_an_index(dtype: torch.dtype, at: int) -> None:
    check(written, torch.randn(5, 5), torch.tensor(at, dtype=dtype))


@pytest.mark.parametrize("name", ["a row", "a column", "a product", "the number itself"])
def test_programs_that_a_user_exported(name: str) -> None:
    function: Callable[..., object] = READS[name]
    exported = torch.export.export(Call(function), (X, T))
    for at in (0, 3):
        agree(eager(function, (X, torch.tensor(at))), execute(fxhlo.lower(exported), (X, torch.tensor(at))))


def test_a_number_that_is_a_size_is_refused_with_the_reason() -> None:
    with pytest.raises(ContractError, match="it gives Python a number that is known only when the module runs"):
        fxhlo.lower(Call(lambda x, t: x.new_zeros(t.item())), (X, T))


def test_the_pass_is_the_first() -> None:
    assert isinstance(default_passes()[0], ItemNumbers)


def test_programs_mean_the_same_in_eager_torch_before_and_after() -> None:
    from fxhlo.lowering.capture.exporting import capture

    program = capture(torch.export.export(Call(READS["a product"]), (X, T)))
    after = ItemNumbers()(program)
    assert not any(node.target in (torch.ops.aten._local_scalar_dense.default,) for node in after.graph.nodes)
    torch.testing.assert_close(after.module(X, T), program.module(X, T))
