"""process_logits, sample, logprobs: references against vLLM's own functions, XLA versions against the references."""

import re
from functools import partial

import jax
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from fxhlo.kernels import logprobs, process_logits, sample
from fxhlo.kernels.sample import reference
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core.targets import Target

DTYPES = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "min_p": np.float32}
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def compiled(kernel, implementation, **attributes):
    """A function of the kernel's operands in order, compiled for the CPU."""
    names = re.findall(r"Tensor\?? (\w+)", kernel.KERNEL.schema)

    def call(*arrays):
        return implementation.lower(**dict(zip(names, arrays, strict=False)), **attributes)  # as legalize.py calls it

    return jax.jit(call)


def both_implementations(kernel, **attributes):
    """The kernel's implementations that run here: native and XLA's. Those of Pallas have tests of their own."""
    here = [one for one in kernel.KERNEL.implementations if one.target not in ("tpu", "cuda")]
    assert [one.name for one in here] == ["native", "xla"]
    return [compiled(kernel, one, **attributes) for one in here]


SAMPLE = both_implementations(sample)
PROCESS = both_implementations(process_logits)


def operands(logits, **parameters):
    """The seven operands of `sample` as numpy arrays, with neutral parameters where none is given."""
    rows = len(logits)
    arrays = [np.asarray(logits, np.float32)]
    for name, dtype in DTYPES.items():
        arrays.append(np.broadcast_to(np.asarray(parameters.get(name, NEUTRAL[name]), dtype), rows).copy())
    arrays.append(np.broadcast_to(np.asarray(parameters.get("seeds", (1, 2)), np.int32), (rows, 2)).copy())
    arrays.append(np.broadcast_to(np.asarray(parameters.get("steps", 0), np.int32), rows).copy())
    return arrays


def eager(function, arrays, **attributes):
    result = function(*(torch.from_numpy(a) for a in arrays), **attributes)
    return [r.numpy() for r in result] if isinstance(result, tuple) else result.numpy()


def both(arrays):
    """The tokens, after checking that the implementations and the reference agree and stay inside the vocabulary."""
    expected = eager(sample.KERNEL.reference, arrays)
    for implementation in SAMPLE:
        np.testing.assert_array_equal(np.asarray(implementation(*arrays)), expected)
    assert expected.dtype == np.int32
    assert ((expected >= 0) & (expected < arrays[0].shape[1])).all()
    return expected


def random_logits(rng, kind, shape):
    x = (rng.standard_normal(shape) * rng.choice([0.1, 1, 4, 30])).astype(np.float32)
    if kind == "ties":
        x = np.round(x)
    elif kind == "bfloat16":
        x = torch.from_numpy(x).bfloat16().float().numpy()
    elif kind == "equal":
        x[:] = x[0, 0]
    elif kind == "masked":
        x[rng.random(shape) < 0.9] = -np.inf
    elif kind == "broken":
        x[rng.random(shape) < 0.2] = np.nan
        x[0] = rng.choice([np.nan, -np.inf, np.inf, 0.0])
    elif kind == "extreme":
        values = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, np.inf, -np.inf, 1.0], np.float32)
        x = rng.choice(values, shape)
    return x


# ---- sample


def test_threefry_known_answers():
    """kat_vectors of Random123 1.14 (threefry2x32, 20 rounds)."""
    vectors = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]

    def int32(words):
        return tuple(torch.from_numpy(np.array([w], np.uint32).view(np.int32)) for w in words)

    for key, counter, expected in vectors:
        result = reference.threefry(int32(key), int32(counter))
        assert tuple(int(r) & 0xFFFFFFFF for r in result) == expected


KINDS = ("normal", "ties", "bfloat16", "equal", "masked", "broken", "extreme")
SHAPES = ((1, 7), (4, 33), (3, 2000))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SHAPES), st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.booleans())
def test_implementations_return_the_tokens_of_the_reference(shape, kind, seed, mixed):
    rng = np.random.default_rng(seed)
    rows, size = shape
    choose = (lambda options: rng.choice(options, rows)) if mixed else rng.choice
    both(
        operands(
            random_logits(rng, kind, shape),
            temperature=choose([0.0, 1e-6, 0.01, 0.7, 1.0, 1.3, 100.0, np.inf]),
            top_k=choose([-1, 0, 1, 2, 5, 40, size - 1, size, 2**31 - 1]),
            top_p=choose([0.0, 1e-9, 0.1, 0.5, 0.9, 0.99, 1.0 - 2.0**-24, 1.0]),
            min_p=choose([0.0, 1e-6, 0.05, 0.3, 1.0]),
            seeds=rng.integers(-(2**31), 2**31, (rows, 2)),
            steps=rng.integers(0, 2**31, rows),
        )
    )


def test_greedy_takes_the_lowest_index_and_survives_broken_rows():
    inf, nan = np.inf, np.nan
    logits = [[1, 3, 3, 2], [-inf] * 4, [nan] * 4, [nan, -inf, 0, -0.0], [-5, inf, nan, inf]]
    for temperature in (0.0, 1e-6):
        np.testing.assert_array_equal(both(operands(logits, temperature=temperature)), [1, 0, 0, 2, 1])
    tokens = both(operands(logits, temperature=1.0))
    assert (tokens[1], tokens[2]) == (0, 0)
    assert tokens[3] in (2, 3)
    assert tokens[4] in (1, 3)


def test_a_row_does_not_depend_on_the_batch():
    rng = np.random.default_rng(5)
    size = 3000
    row = operands(
        rng.standard_normal((1, size)) * 2,
        temperature=0.9, top_k=200, top_p=0.95, min_p=0.001, seeds=(77, -3), steps=12,
    )  # fmt: skip
    alone = both(row)[0]
    for rows, place in ((2, 1), (5, 0), (5, 4)):
        batch = operands(
            rng.standard_normal((rows, size)),
            temperature=rng.choice([0.0, 1.0, 2.0], rows), top_k=rng.choice([0, 5], rows),
            seeds=rng.integers(0, 2**31, (rows, 2)), steps=rng.integers(0, 50, rows),
        )  # fmt: skip
        for whole, one in zip(batch, row, strict=True):
            whole[place] = one[0]
        assert both(batch)[place] == alone


@pytest.mark.parametrize(
    ("parameters", "keep"),
    [
        ({}, 12),
        ({"temperature": 2.5}, 12),
        ({"top_k": 4}, 4),
        ({"top_p": 0.8}, None),
        ({"temperature": 0.6, "top_k": 9, "top_p": 0.9, "min_p": 0.02}, None),
    ],
)
def test_tokens_follow_the_softmax(parameters, keep):
    """Pearson's chi-square over 40000 counters of one seed; its 99.99% quantile for 11 degrees of freedom is 37.4."""
    draws = 40000
    x = np.random.default_rng(11).standard_normal(12).astype(np.float32) * 1.5
    arrays = operands(np.tile(x, (draws, 1)), steps=np.arange(draws), seeds=(123, 456), **parameters)
    counts = np.bincount(eager(sample.KERNEL.reference, arrays), minlength=12)
    y = torch.from_numpy(x)[None] / parameters.get("temperature", 1.0)
    columns = [torch.from_numpy(a[:1, None]) for a in arrays[2:5]]
    kept = reference.kept(y, reference.distance(y), *columns)[0].numpy()
    assert keep in (None, kept.sum())
    p = np.where(kept, np.exp(y[0].numpy().astype(np.float64)), 0.0)
    p /= p.sum()
    assert (counts[~kept] == 0).all()
    assert (((counts - draws * p)[kept] ** 2) / (draws * p[kept])).sum() < 37.4


def test_seeds_steps_and_tokens_are_independent():
    """Equal logits over 1024 tokens: draws by step, by seed's low word and by its high word are uniform."""
    count, size, buckets = 4000, 1024, 16
    index = np.arange(count)
    for seeds, steps in (((9, 9), index), (np.stack([index, 0 * index], 1), 3), (np.stack([0 * index, index], 1), 3)):
        tokens = eager(sample.KERNEL.reference, operands(np.zeros((count, size)), seeds=seeds, steps=steps))
        for group in (tokens // (size // buckets), tokens % buckets):
            observed = np.bincount(group, minlength=buckets)
            # 99.99% quantile of chi-square with 15 degrees of freedom: 44.3
            assert ((observed - count / buckets) ** 2 / (count / buckets)).sum() < 44.3
        assert abs(np.corrcoef(tokens[:-1], tokens[1:])[0, 1]) < 4 / np.sqrt(count)


def test_weights_and_noise_are_accurate():
    z = torch.linspace(0, 24, 100001)
    exact = torch.exp2(-z.double()) * 2**30
    assert (reference._weights(z).double() - exact).abs().max() < 2**30 * 1e-6
    assert int(reference._weights(torch.zeros(1))) == 2**30
    bits = torch.arange(-(2**31), 2**31, 65519, dtype=torch.int64).to(torch.int32)
    u = ((bits & 0x7FFFFFFF).double() + 0.5) * 2.0**-32
    exact = torch.log2(-torch.log2(torch.where(bits < 0, u, 1 - u)))
    assert (reference._log2_exponential(bits).double() - exact).abs().max() < 1e-5


def vllm_kept(y, top_k, top_p):
    """Kept mask of vLLM's torch implementation; `apply_top_k_top_p` itself is it on a CPU without Triton."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    k = torch.where((top_k > 0) & (top_k < y.shape[1]), top_k, y.shape[1]).squeeze(1)
    return apply_top_k_top_p_pytorch(y.clone(), k, top_p.squeeze(1)) > float("-inf")


@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
def test_top_k_and_top_p_keep_what_vllm_keeps(scale):
    generator = torch.Generator().manual_seed(int(scale * 10))
    rows, size = 16, 4000
    y = torch.randn(rows, size, generator=generator) * scale
    top_k = torch.tensor([0, 1, 5, 50, 1000, 3999, 4000, -1] * 2, dtype=torch.int32).unsqueeze(1)
    top_p = torch.tensor([0.1, 0.5, 0.9, 0.95, 0.99, 1.0, 0.3, 0.8] + [1.0] * 8).unsqueeze(1)
    ours = reference.kept(y, reference.distance(y), top_k, top_p, torch.zeros(rows, 1))
    theirs = vllm_kept(y, top_k, top_p)
    p = torch.softmax(
        torch.where(
            y >= (-torch.sort(-y).values).gather(1, torch.where((top_k > 0), top_k, size).long() - 1), y, -torch.inf
        ).double(),
        1,
    )
    descending, order = torch.sort(p, dim=1, descending=True)
    before = torch.empty_like(p).scatter_(1, order, torch.cumsum(descending, 1) - descending)
    undecided = (before - top_p).abs() < 2e-6 + (top_p == 1) * 1e-5  # float32's cumulative sum is no better than this
    assert torch.equal(ours | undecided, theirs | undecided)
    assert (ours != theirs).sum() <= 4


def test_top_k_keeps_ties_and_top_p_whole_groups():
    y = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    column = lambda value, dtype: torch.tensor([[value]], dtype=dtype)  # noqa: E731
    keep = partial(reference.kept, y, reference.distance(y))
    off = column(0.0, torch.float32)
    k2 = keep(column(2, torch.int32), column(1.0, torch.float32), off)
    assert torch.equal(k2, vllm_kept(y, column(2, torch.int32), column(1.0, torch.float32)))
    assert k2[0].tolist() == [True, True, True, True, False]
    assert keep(column(0, torch.int32), column(0.5, torch.float32), off)[0].tolist() == [True, True, True, True, False]
    assert keep(column(0, torch.int32), column(1e-3, torch.float32), off)[0].tolist() == [True] + [False] * 4


def test_min_p_keeps_what_vllm_keeps():
    from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor

    processor = object.__new__(MinPLogitsProcessor)
    processor.min_p_count, processor.min_p = 1, torch.tensor([[0.0], [1e-4], [0.05], [0.5], [1.0]])
    y = torch.randn(5, 3000, generator=torch.Generator().manual_seed(3)) * 2
    theirs = processor.apply(y.clone()) > float("-inf")
    ones = torch.ones(5, 1)
    ours = reference.kept(y, reference.distance(y), torch.zeros(5, 1, dtype=torch.int32), ones, processor.min_p)
    assert torch.equal(ours, theirs)


# ---- process_logits


def processing(rng, rows, size, dtype=np.float32, flags=(1, 1, 1)):
    """Random operands of `process_logits`, and the token lists they stand for."""
    logits = (rng.standard_normal((rows, size)) * 4).astype(dtype)
    allowed = rng.random((rows, -(-size // 32) * 32)) < 0.8
    mask = np.packbits(allowed, axis=1, bitorder="little").view(np.int32)
    bias_ids = np.stack([rng.permutation(size)[:6] for _ in range(rows)]).astype(np.int32)
    bias_ids[:, 4:] = -1
    bias_values = rng.uniform(-100, 100, (rows, 6)).astype(np.float32)
    prompts = [rng.integers(0, size, rng.integers(1, 20)).tolist() for _ in range(rows)]
    outputs = [rng.integers(0, size // 2, rng.integers(0, 20)).tolist() for _ in range(rows)]
    seen_ids, seen_counts = np.full((rows, 48), -1, np.int32), np.zeros((rows, 48), np.int32)
    for r in range(rows):
        distinct = sorted(set(prompts[r]) | set(outputs[r]))
        seen_ids[r, : len(distinct)] = distinct
        seen_counts[r, : len(distinct)] = [outputs[r].count(t) for t in distinct]
    penalties = [rng.uniform(low, high, rows).astype(np.float32) for low, high in ((0.5, 2), (-2, 2), (-2, 2))]
    flags = np.asarray(flags, np.int32)
    arrays = [logits, flags, mask, bias_ids, bias_values, seen_ids, seen_counts, *penalties]
    return arrays, allowed[:, :size], prompts, outputs


@pytest.mark.parametrize("size", [50, 96, 1000])
def test_process_logits_follows_vllm(size):
    from vllm.v1.sample.ops.penalties import apply_all_penalties

    rng = np.random.default_rng(size)
    arrays, allowed, prompts, outputs = processing(rng, 5, size)
    _, _, _, bias_ids, bias_values, _, _, repetition, frequency, presence = arrays
    x = torch.from_numpy(arrays[0].copy())
    x.masked_fill_(~torch.from_numpy(allowed), float("-inf"))
    x[torch.arange(5)[:, None], torch.from_numpy(bias_ids[:, :4])] += torch.from_numpy(bias_values[:, :4])
    width = max(map(len, prompts))
    padded = torch.tensor([p + [size] * (width - len(p)) for p in prompts])
    expected = apply_all_penalties(x, padded, *map(torch.from_numpy, (presence, frequency, repetition)), outputs)
    np.testing.assert_array_equal(eager(process_logits.KERNEL.reference, arrays), expected.numpy())
    for implementation in PROCESS:
        np.testing.assert_array_equal(np.asarray(implementation(*arrays)), expected.numpy())


def test_the_mask_is_xgrammars():
    xgrammar = pytest.importorskip("xgrammar")
    arrays, *_ = processing(np.random.default_rng(1), 3, 77, flags=(1, 0, 0))
    expected = torch.from_numpy(arrays[0].copy())
    xgrammar.apply_token_bitmask_inplace(expected, torch.from_numpy(arrays[2]))
    np.testing.assert_array_equal(eager(process_logits.KERNEL.reference, arrays), expected.numpy())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_process_logits_stages_and_dtypes(bfloat16):
    rng = np.random.default_rng(4)
    for flags in np.ndindex(2, 2, 2):
        arrays, *_ = processing(rng, 3, 100, flags=flags)
        tensors = [torch.from_numpy(a) for a in arrays]
        if bfloat16:
            tensors[0] = tensors[0].bfloat16()
            arrays[0] = jax.numpy.asarray(arrays[0], jax.numpy.bfloat16)
        expected = process_logits.KERNEL.reference(*tensors)
        assert expected.dtype == torch.float32
        for implementation in PROCESS:
            np.testing.assert_array_equal(np.asarray(implementation(*arrays)), expected.numpy())
        if not any(flags):
            assert torch.equal(expected, tensors[0].float())


# ---- logprobs


@pytest.mark.parametrize("kind", ["normal", "ties", "bfloat16", "masked"])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_logprobs(kind, count):
    rng = np.random.default_rng(count)
    rows, size = 4, 500
    x = random_logits(rng, kind, (rows, size))
    x[:, 3] = 0.0
    tokens = rng.integers(0, size, rows).astype(np.int32)
    tokens[0] = x[0].argmax()
    arrays = [x, tokens, np.int32(1)]
    ids, values, rank = logprobs.KERNEL.reference(*map(torch.as_tensor, arrays), count=count)

    expected = torch.log_softmax(torch.from_numpy(x), dim=1)
    chosen = expected.gather(1, torch.from_numpy(tokens)[:, None].long())
    torch.testing.assert_close(values, expected.gather(1, ids.long()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values[:, 1:], expected.topk(count, dim=1).values, rtol=1e-5, atol=1e-5)
    assert torch.equal(rank, (expected >= chosen).sum(1).int())
    np.testing.assert_array_equal(ids[:, 0], tokens)
    np.testing.assert_array_equal(ids[:, 1:], np.argsort(-x, axis=1, kind="stable")[:, :count])
    off = [x, tokens, np.int32(0)]
    nothing = [logprobs.KERNEL.reference(*map(torch.as_tensor, off), count=count)]
    for run in both_implementations(logprobs, count=count):
        made = run(*arrays)
        np.testing.assert_array_equal(made[0], ids)
        np.testing.assert_allclose(made[1], values, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(made[2], rank)
        nothing.append(run(*off))
    for disabled in nothing:
        assert all((np.asarray(r) == 0).all() for r in disabled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_under_a_mask_are_those_of_masked_logits(dtype):
    """A row with a mask, one with bits past the vocabulary, one whose chosen token is forbidden, one without."""
    rng = np.random.default_rng(4)
    rows, size, count = 4, 500, 7
    x = torch.from_numpy(random_logits(rng, "normal", (rows, size))).to(dtype)
    mask = np.full((rows, (size + 31) // 32), -1, np.int32)
    mask[:3] = rng.integers(-(2**31), 2**31, mask[:3].shape, np.int32)
    bits = (mask[:, np.arange(size) // 32] >> (np.arange(size) % 32)) & 1 != 0
    tokens = bits.argmax(1).astype(np.int32)
    tokens[2] = bits[2].argmin()
    allowed = torch.from_numpy(bits)
    masked = torch.where(allowed, x, float("-inf"))
    arrays = (torch.as_tensor(tokens), torch.tensor(1))
    expected = logprobs.KERNEL.reference(masked, *arrays, count=count)
    found = logprobs.KERNEL.reference(x, *arrays, torch.from_numpy(mask), count=count)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert found[1][2, 0] == -torch.inf
    given = jax.numpy.asarray(x.float().numpy(), jax.numpy.bfloat16 if dtype == torch.bfloat16 else np.float32)
    for run in both_implementations(logprobs, count=count):
        ids, values, rank = run(given, tokens, np.int32(1), mask)
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_allclose(values, expected[1], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(rank, expected[2])
        assert all((np.asarray(part) == 0).all() for part in run(given, tokens, np.int32(0), mask))
        without = run(given, tokens, np.int32(1), np.full_like(mask, -1))
        for one, other in zip(without, logprobs.KERNEL.reference(x, *arrays, count=count), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_logprobs_of_bfloat16():
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    tokens = torch.tensor([5, 6], dtype=torch.int32)
    ids, values, rank = logprobs.KERNEL.reference(x, tokens, torch.tensor(1), count=5)
    for run in both_implementations(logprobs, count=5):
        result = run(jax.numpy.asarray(x.float().numpy(), jax.numpy.bfloat16), tokens.numpy(), np.int32(1))
        np.testing.assert_array_equal(result[0], ids)
        np.testing.assert_allclose(result[1], values, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(result[2], rank)


# ---- the contract of kernels/spec.py


def cases():
    rng = np.random.default_rng(0)
    yield sample.KERNEL, operands(rng.standard_normal((2, 40))), {}
    yield process_logits.KERNEL, processing(rng, 2, 40)[0], {}
    yield (
        logprobs.KERNEL,
        [rng.standard_normal((2, 40)).astype(np.float32), np.zeros(2, np.int32), np.int32(1)],
        {"count": 3},
    )


@pytest.mark.parametrize(("kernel", "arrays", "attributes"), cases(), ids=lambda case: getattr(case, "name", ""))
def test_the_reference_traces_and_the_fake_has_its_types(kernel, arrays, attributes):
    tensors = [torch.as_tensor(a) for a in arrays]
    function = partial(kernel.reference, **attributes)
    graph = make_fx(function, tracing_mode="fake")(*tensors)
    assert {
        n.target.namespace for n in graph.graph.nodes if n.op == "call_function" and hasattr(n.target, "namespace")
    } == {"aten"}

    def flat(result):
        return list(result) if isinstance(result, tuple) else [result]

    expected = flat(function(*tensors))
    types = [(t.shape, t.dtype) for t in expected]
    assert types == [(t.shape, t.dtype) for t in flat(kernel.fake(*tensors, **attributes))]
    for traced, direct in zip(flat(graph(*tensors)), expected, strict=True):
        torch.testing.assert_close(traced, direct, rtol=0, atol=0)

    implementation = next(one for one in kernel.implementations if one.target == "any")
    names = re.findall(r"Tensor (\w+)", kernel.schema)
    specs = Operands.of(names, (TensorSpec(a.shape, np.dtype(a.dtype)) for a in map(np.asarray, arrays)))
    assert implementation.refusal(specs, attributes, Target("tpu-v6e")) is None
    named = dict(zip(names, arrays, strict=True))  # as legalize.py calls it
    lowered = jax.jit(partial(implementation.lower, **attributes)).trace(**named).lower(lowering_platforms=("tpu",))
    assert [(torch.Size(t.shape), str(t.dtype)) for t in jax.tree.leaves(lowered.out_info)] == [
        (shape, str(dtype).removeprefix("torch.")) for shape, dtype in types
    ]


def test_what_is_not_supported_has_a_reason():
    def refusal(kernel, shape, dtype=np.float32, **attributes):
        (implementation,) = (one for one in kernel.KERNEL.implementations if one.target == "any")
        specs = Operands.of(("logits",), (TensorSpec(shape, np.dtype(dtype)),))
        return implementation.refusal(specs, attributes, Target("cpu"))

    assert "float16" in refusal(sample, (2, 10), np.float16)
    assert "overflow" in refusal(sample, (2, 2**20))
    assert "30" in refusal(logprobs, (2, 10), count=30)
