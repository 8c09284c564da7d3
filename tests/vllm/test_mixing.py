"""A step whose plain torch mixes tokens is refused with its line; attention, routers and norms are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.mixing import check_tokens_apart


def convolved(x: Tensor) -> Tensor:
    rows = functional.pad(x.t()[None], (2, 0))
    return functional.conv1d(rows, torch.ones(6, 6, 3))[0].t()


def shifted(x: Tensor) -> Tensor:
    return x + functional.pad(x, (0, 0, 1, 0))[:-1]


def attended(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.t(), -1) @ x


def by_row(x: Tensor) -> Tensor:
    unused = x @ x.t()  # a mask that nobody reads
    assert unused.ndim == 2
    heads = torch.cat([x, x * 2], -1).view(-1, 4, 3).transpose(0, 1)
    return heads.transpose(0, 1).reshape(-1, 3).softmax(-1)


def captured(function: Callable[[Tensor], Tensor]):
    inputs = [Input("values", ("tokens", 6), torch.float32)]
    return capture_callable(function, torch.nn.Module(), inputs, {"tokens": (4, 64)}, results=("out",))


@pytest.mark.parametrize("function", [convolved, shifted, attended])
def test_a_step_that_mixes_tokens(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedError, match="mixes the tokens of a step outside of attention") as caught:
        check_tokens_apart(captured(function))
    assert "test_mixing.py" in str(caught.value)


def test_a_step_that_does_not() -> None:
    check_tokens_apart(captured(by_row))
