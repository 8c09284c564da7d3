"""What is called in the stead of functions that look at values: the same results, and nothing left after a capture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from differential import check

import fxhlo
from fxhlo.lowering.capture import stand_ins
from fxhlo.lowering.errors import CaptureError

X = torch.randn(3, 5)
COUNTS, WEIGHTS = torch.tensor([1, 2, 3, 1, 1]), torch.rand(5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("correction", [0, 1, 2])
@pytest.mark.parametrize(
    "weights", [{}, {"fweights": COUNTS}, {"aweights": WEIGHTS}, {"fweights": COUNTS, "aweights": WEIGHTS}]
)
def test_cov(dtype: torch.dtype, correction: int, weights: dict[str, torch.Tensor]) -> None:
    x = (X * 4).to(dtype)
    torch.testing.assert_close(
        stand_ins.cov(x, correction=correction, **weights), torch.cov(x, correction=correction, **weights)
    )


@pytest.mark.parametrize(
    "x", [X, X[0], X[:, :1], torch.randn(3, 5, dtype=torch.complex64), torch.empty(0), torch.tensor(2.0)]
)
def test_corrcoef(x: torch.Tensor) -> None:
    torch.testing.assert_close(stand_ins.corrcoef(x), torch.corrcoef(x), equal_nan=True)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 3, 4])
def test_combinations(size: int, count: int, replacement: bool) -> None:
    x = torch.arange(size)
    ours, theirs = stand_ins.combinations(x, count, replacement), torch.combinations(x, count, replacement)
    assert ours.shape == theirs.shape
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("var", [torch.rand(3, 5), torch.rand(3), torch.rand(3, 1)])
def test_gaussian_nll_loss(reduction: str, full: bool, var: torch.Tensor) -> None:
    args = (X, X + 1, var)
    torch.testing.assert_close(
        stand_ins.gaussian_nll_loss(*args, full=full, reduction=reduction),
        torch.nn.functional.gaussian_nll_loss(*args, full=full, reduction=reduction),
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cov(x),
        lambda x: x.corrcoef(),
        lambda x: torch.combinations(x[0], 3),
        lambda x: x.narrow(1, torch.tensor(-2), 2),
        lambda x: torch.equal(x, x * 1),
        lambda x: x.equal(x[:2]),
        lambda x: torch.allclose(x, x + 1),
        lambda x: torch.nn.GaussianNLLLoss()(x, x + 1, x.abs()),
        lambda x: x[..., None, 1:3],
        lambda x: x[[0, 2]][:, torch.tensor([1, 0])],
    ],
)
def test_functions_lowered(function: Callable[[torch.Tensor], object]) -> None:
    check(function, X)


def test_nothing_is_left_after_a_capture_that_fails() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    model = Model()
    with pytest.raises(CaptureError):
        fxhlo.lower(model, (X,))
    assert "forward" not in vars(model)
    assert torch._C._len_torch_function_stack() == 0
    assert not torch.fx.proxy._STACK_TRACE_ANCHORS


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_transformers_with_a_mask_that_is_an_argument(kind: str) -> None:
    name = kind.title()
    layer = getattr(torch.nn, f"Transformer{name}Layer")(8, 2, 16, dropout=0.0)
    module = getattr(torch.nn, f"Transformer{name}")(layer, 1)
    x, mask = torch.randn(5, 2, 8), torch.nn.Transformer.generate_square_subsequent_mask(5)
    check(module, *((x, mask) if kind == "encoder" else (x, x + 1, mask)), rtol=1e-4, atol=1e-5)


LOG_PROBS, LABELS = torch.randn(7, 3, 5).log_softmax(-1), torch.tensor([[1, 2, 2, 4], [3, 3, 1, 1], [4, 1, 2, 3]])
FLAT = torch.cat([LABELS[0, :3], LABELS[2, :4]])
LENGTHS, COUNTS_OF_LABELS = torch.tensor([7, 1, 4]), torch.tensor([3, 0, 4])


@pytest.mark.parametrize(
    "options", [{}, {"reduction": "sum"}, {"reduction": "none"}, {"reduction": "none", "zero_infinity": True}]
)
@pytest.mark.parametrize("targets", [LABELS, FLAT, LABELS.to(torch.int32)])
@pytest.mark.parametrize("convert", [torch.as_tensor, torch.Tensor.tolist])
def test_ctc_loss(targets: torch.Tensor, convert: Callable[[torch.Tensor], object], options: dict[str, object]) -> None:
    args = LOG_PROBS, targets, convert(LENGTHS), convert(COUNTS_OF_LABELS)
    torch.testing.assert_close(
        stand_ins.ctc_loss(*args, **options), torch.nn.functional.ctc_loss(*args, **options), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("targets", [LABELS, FLAT])
def test_ctc_loss_is_lowered(targets: torch.Tensor) -> None:
    check(torch.nn.CTCLoss(reduction="none"), LOG_PROBS, targets, LENGTHS, COUNTS_OF_LABELS)


def test_ctc_loss_of_one_sequence_with_another_blank() -> None:
    check(torch.nn.CTCLoss(blank=4), LOG_PROBS[:, 0], torch.tensor([0, 3, 3]), torch.tensor(6), torch.tensor(3))
    check(torch.nn.CTCLoss(blank=4), LOG_PROBS[:, 0].double(), torch.tensor([0, 3, 3]), (7,), (3,))
