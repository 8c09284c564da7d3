"""filter_logits: the reference against vLLM's own sampler, XLA's version against the reference."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from fxhlo.kernels.filter_logits import KERNEL
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core.targets import Target

(XLA,) = KERNEL.implementations
COMPILED = jax.jit(XLA.lower)


def operands(seed: int, rows: int = 12, size: int = 500, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Greedy and random rows, each filter alone and all together, some logits masked."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, size, generator=generator) * 4
    logits[torch.rand(rows, size, generator=generator) < 0.2] = -torch.inf
    index = torch.arange(rows)
    return [
        logits.to(dtype),
        torch.tensor([0.0, 0.7, 1.0, 1.5])[index % 4],
        torch.tensor([0, 20, 450, 1, -1], dtype=torch.int32)[index % 5],
        torch.tensor([1.0, 0.9, 0.5])[index % 3],
        torch.tensor([0.0, 0.01])[index % 2],
        torch.tensor(1, dtype=torch.int32),
    ]


def vllm(logits, temperature, top_k, top_p, min_p, _enabled) -> torch.Tensor:
    """vLLM's Sampler.sample up to the draw, greedy rows as it leaves them."""
    from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch
    from vllm.v1.sample.sampler import Sampler

    greedy = temperature < 1e-5
    off = lambda values, neutral: torch.where(greedy, neutral, values)  # noqa: E731 - as SamplingParams does
    size = logits.shape[1]
    x = Sampler.apply_temperature(logits.float().clone(), temperature.clone(), all_random=False)
    processor = object.__new__(MinPLogitsProcessor)
    processor.min_p_count, processor.min_p = 1, off(min_p, 0.0).unsqueeze(1)
    x = processor.apply(x)
    k = torch.where((top_k > 0) & (top_k < size), top_k, size)
    return apply_top_k_top_p_pytorch(x, off(k, size), off(top_p, 1.0))


@pytest.mark.parametrize("seed", range(4))
def test_the_reference_is_vllms_sampler(seed: int) -> None:
    given = operands(seed)
    ours, theirs = KERNEL.reference(*given), vllm(*given)
    differ = torch.isfinite(ours) != torch.isfinite(theirs)
    assert differ.sum() <= 2, "at the edge of top-p float32 sums decide"
    torch.testing.assert_close(ours[~differ], theirs[~differ])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_xla_keeps_the_same_tokens(seed: int, dtype: torch.dtype) -> None:
    given = operands(seed, dtype=dtype)
    expected = KERNEL.reference(*given).numpy()
    arrays = [
        one.view(torch.int16).numpy().view("bfloat16") if one.dtype == torch.bfloat16 else one.numpy() for one in given
    ]
    np.testing.assert_allclose(np.asarray(COMPILED(*arrays)), expected, rtol=1e-6)


def test_a_long_tail_is_kept_where_top_k_has_room() -> None:
    """Tokens that can never be drawn are shown nevertheless, as vLLM shows them."""
    given = operands(0, rows=2)
    given[0] = -torch.arange(1000.0).reshape(2, 500)
    given[1], given[2], given[3], given[4] = (
        torch.ones(2),
        torch.full((2,), 200, dtype=torch.int32),
        torch.ones(2),
        torch.zeros(2),
    )
    for found in (KERNEL.reference(*given).numpy(), np.asarray(COMPILED(*(one.numpy() for one in given)))):
        assert np.isfinite(found).sum(axis=1).tolist() == [200, 200]
        assert found[0, 199] == -199


def test_zeros_where_nobody_asks() -> None:
    given = operands(1)
    given[-1] = torch.tensor(0, dtype=torch.int32)
    assert not KERNEL.reference(*given).any()
    assert not np.asarray(COMPILED(*(one.numpy() for one in given))).any()


def test_supports_names_what_it_does_not_take() -> None:
    names = ["logits", "temperature", "top_k", "top_p", "min_p", "enabled"]

    def refusal(dtype: str, size: int) -> str | None:
        shapes = [(4, size), (4,), (4,), (4,), (4,), ()]
        dtypes = [dtype, "float32", "int32", "float32", "float32", "int32"]
        specs = [TensorSpec(shape, np.dtype(one)) for shape, one in zip(shapes, dtypes, strict=True)]
        return XLA.refusal(Operands.of(names, specs), {}, Target.parse("cpu"))

    assert refusal("float32", 1000) is None
    assert "float16" in (refusal("float16", 1000) or "")
    assert "2**19" in (refusal("float32", 2**19 + 1) or "")
