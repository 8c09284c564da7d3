"""Kernels with a state per request: each implementation and the reference against a loop over tokens, and against transformers.

A step's rows may be a whole prompt, a chunk of one, or a token of each request: however a sequence is split, it gives the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fxhlo
from fxhlo.kernels import (
    causal_conv1d,
    gated_delta_rule,
    lightning_attention,
    ragged_causal_conv1d,
    ragged_gated_delta_rule,
    ragged_lightning_attention,
    ragged_selective_scan,
    ragged_ssd,
    selective_scan,
    ssd,
)
from fxhlo.kernels.catalog import kernels, register_torch_ops
from fxhlo.kernels.ragged_causal_conv1d.cases import Lengths, operands_of, values
from fxhlo.kernels.ragged_ssd.cases import specs as ssd_specs
from fxhlo.kernels.spec import Implementation, Kernel, Operands, TensorSpec
from fxhlo.passes.hlo import legalize
from fxhlo.runtime.core import native
from fxhlo.runtime.core.targets import Target

CPU, F32 = Target("cpu"), np.dtype(np.float32)
STEP = ("state", "state_slots", "seq_lens", "query_start_loc")
Tensors = dict[str, torch.Tensor]


# ---- a loop over tokens ------------------------------------------------------------------------------------------


def conv_token(state: torch.Tensor, row: Tensors, whole: Tensors, silu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    taps = torch.cat([state, row["values"][None]])
    total = (taps * whole["weight"].T).sum(0) + whole["bias"]
    return total * torch.sigmoid(total) if silu else total, taps[1:]


def scan_token(state: torch.Tensor, row: Tensors, whole: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    step = torch.log1p(torch.exp(row["dt"] + whole["dt_bias"]))
    state = torch.exp(step[:, None] * whole["a"]) * state + torch.outer(step * row["x"], row["b"])
    return state @ row["c"] + whole["d"] * row["x"], state


def ssd_token(state: torch.Tensor, row: Tensors, whole: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    made, new = torch.zeros_like(row["x"]), state.clone()
    for head in range(row["x"].shape[0]):
        group = head * row["b"].shape[0] // row["x"].shape[0]
        step = math.log1p(math.exp(row["dt"][head] + whole["dt_bias"][head]))
        new[head] = math.exp(step * whole["a"][head]) * state[head] + step * torch.outer(
            row["x"][head], row["b"][group]
        )
        made[head] = new[head] @ row["c"][group] + whole["d"][head] * row["x"][head]
    return made, new


def delta_token(
    state: torch.Tensor, row: Tensors, whole: Tensors, scale: float, l2norm: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    made, new = torch.zeros_like(row["v"]), state.clone()
    for head in range(row["v"].shape[0]):
        at = head * row["k"].shape[0] // row["v"].shape[0]
        query, key = row["q"][at], row["k"][at]
        if l2norm:
            query, key = (one / math.sqrt(float(one @ one) + 1e-6) for one in (query, key))
        held = state[head] * torch.exp(row["g"][head])
        new[head] = held + row["beta"][head] * torch.outer(row["v"][head] - held @ key, key)
        made[head] = scale * (new[head] @ query)
    return made, new


def lightning_token(state: torch.Tensor, row: Tensors, whole: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    decay = torch.exp(-whole["slopes"])[:, None, None]
    state = decay * state + torch.einsum("hv,hk->hvk", row["v"], row["k"])
    return torch.einsum("hvk,hk->hv", state, row["q"]), state


def conv_specs(rows: int, channels: int, taps: int, requests: int) -> dict[str, TensorSpec]:
    shapes = {"values": (rows, channels), "weight": (channels, taps), "bias": (channels,)}
    return operands_of(shapes, (taps - 1, channels), requests, F32, F32)


def scan_specs(rows: int, channels: int, size: int, requests: int) -> dict[str, TensorSpec]:
    shapes = {
        "x": (rows, channels), "dt": (rows, channels), "a": (channels, size), "b": (rows, size), "c": (rows, size),
        "d": (channels,), "dt_bias": (channels,),
    }  # fmt: skip
    return operands_of(shapes, (channels, size), requests, F32, F32)


def delta_specs(
    rows: int, key_heads: int, heads: int, keys: int, size: int, requests: int, channels: bool = False
) -> dict[str, TensorSpec]:
    shapes = {
        "q": (rows, key_heads, keys), "k": (rows, key_heads, keys), "v": (rows, heads, size),
        "g": (rows, heads, keys) if channels else (rows, heads), "beta": (rows, heads),
    }  # fmt: skip
    return operands_of(shapes, (heads, size, keys), requests, F32, F32)


def lightning_specs(rows: int, heads: int, size: int, requests: int) -> dict[str, TensorSpec]:
    shapes = dict.fromkeys(("q", "k", "v"), (rows, heads, size)) | {"slopes": (heads,)}
    return operands_of(shapes, (heads, size, size), requests, F32, F32)


@dataclass(frozen=True)
class Subject:
    """A kernel with a state, its form without one, one token of it, operands of (rows, requests), and which operands are rows."""

    kernel: Kernel
    stateless: Kernel
    token: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    specs: Callable[[int, int], dict[str, TensorSpec]]
    rows: tuple[str, ...]
    attributes: dict[str, Any]

    def operands(self, rows: int, requests: int, lengths: Lengths, seed: int) -> dict[str, np.ndarray]:
        """Of a step; slots that no request continues from hold NaN."""
        rng = np.random.default_rng(seed)
        made = dict(values(self.specs(rows, requests), lengths)(rng))
        goes_on = [slot for slot, (done, _) in zip(made["state_slots"], lengths, strict=False) if done]
        unread = np.setdiff1d(np.arange(len(made["state"])), goes_on)
        made["state"][unread[unread > 0]] = np.nan
        for name in self.rows:
            made[name][sum(new for _, new in lengths) :] = np.nan
        return made


SUBJECTS = {
    "conv": Subject(
        ragged_causal_conv1d.KERNEL, causal_conv1d.KERNEL, conv_token,
        lambda rows, requests: conv_specs(rows, 9, 4, requests), ("values",), {"silu": True},
    ),
    "conv without silu, 3 taps": Subject(
        ragged_causal_conv1d.KERNEL, causal_conv1d.KERNEL, conv_token,
        lambda rows, requests: conv_specs(rows, 16, 3, requests), ("values",), {"silu": False},
    ),
    "selective scan": Subject(
        ragged_selective_scan.KERNEL, selective_scan.KERNEL, scan_token,
        lambda rows, requests: scan_specs(rows, 20, 16, requests), ("x", "dt", "b", "c"), {},
    ),
    "ssd": Subject(
        ragged_ssd.KERNEL, ssd.KERNEL, ssd_token,
        lambda rows, requests: ssd_specs(rows, 6, 8, 2, 20, requests, dtype=F32), ("x", "dt", "b", "c"), {},
    ),
    "delta, a decay a head": Subject(
        ragged_gated_delta_rule.KERNEL, gated_delta_rule.KERNEL, delta_token,
        lambda rows, requests: delta_specs(rows, 2, 4, 16, 12, requests), ("q", "k", "v", "g", "beta"),
        {"scale": 0.25, "l2norm": True},
    ),
    "delta, a decay a channel": Subject(
        ragged_gated_delta_rule.KERNEL, gated_delta_rule.KERNEL, delta_token,
        lambda rows, requests: delta_specs(rows, 3, 3, 8, 8, requests, channels=True), ("q", "k", "v", "g", "beta"),
        {"scale": 0.3, "l2norm": True},
    ),
    "lightning": Subject(
        ragged_lightning_attention.KERNEL, lightning_attention.KERNEL, lightning_token,
        lambda rows, requests: lightning_specs(rows, 3, 8, requests), ("q", "k", "v"), {},
    ),
}  # fmt: skip


def expected(subject: Subject, operands: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Output and state by a loop over each request's tokens in float64."""
    tensors = {name: torch.from_numpy(array).double() for name, array in operands.items()}
    state, bounds = tensors["state"].clone(), operands["query_start_loc"].tolist()
    whole = {name: tensor for name, tensor in tensors.items() if name not in (*subject.rows, *STEP)}
    output: torch.Tensor | None = None
    for request, (begin, end) in enumerate(pairwise(bounds)):
        slot = int(operands["state_slots"][request])
        fresh = int(operands["seq_lens"][request]) == end - begin
        current = torch.zeros_like(state[slot]) if fresh else state[slot]
        for at in range(begin, end):
            row = {name: tensors[name][at] for name in subject.rows}
            made, current = subject.token(current, row, whole, **subject.attributes)
            output = torch.zeros(len(tensors[subject.rows[0]]), *made.shape).double() if output is None else output
            output[at] = made
        if end > begin:
            state[slot] = current
    assert output is not None
    return output.numpy(), state.numpy()


Way = Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]


def ways(subject: Subject) -> Iterator[tuple[str, Way]]:
    """What runs on this machine: the reference, and the implementations."""

    def reference(operands: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        tensors = {name: torch.from_numpy(array) for name, array in operands.items()}
        output, state = subject.kernel.reference(**tensors, **subject.attributes)
        return output.numpy(), state.numpy()

    def run(implementation: Implementation) -> Way:
        compiled = jax.jit(lambda given: implementation.lower(**given, **subject.attributes))

        def way(operands: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            specs = Operands.of(operands, (TensorSpec(array.shape, array.dtype) for array in operands.values()))
            reason = implementation.refusal(specs, subject.attributes, CPU)
            if reason is not None and reason == native.unavailable():
                pytest.skip(reason)
            assert reason is None
            output, state = compiled(operands)
            return np.asarray(output), np.asarray(state)

        return way

    yield "reference", reference
    for implementation in subject.kernel.implementations:
        if implementation.target in ("cpu", "any"):
            yield implementation.name, run(implementation)
    if subject.kernel.on_a_device is not None:
        yield "on a device", run(subject.kernel.on_a_device)


ALL = [
    pytest.param(subject, way, id=f"{name}, {kind}")
    for name, subject in SUBJECTS.items()
    for kind, way in ways(subject)
]
ROWS, REQUESTS = 76, 6
"""Of every step here, so that each implementation compiles once."""
lengths = st.lists(st.tuples(st.sampled_from([0, 3]), st.integers(0, 6)), min_size=1, max_size=4)
ones = st.lists(st.tuples(st.sampled_from([0, 7]), st.integers(0, 1)), min_size=1, max_size=REQUESTS)
steps = st.one_of(lengths, ones).filter(lambda one: any(new for _, new in one))


def check_step(subject: Subject, way: Way, lengths: Lengths, rows: int, seed: int) -> None:
    operands = subject.operands(rows, REQUESTS, lengths, seed)
    right, right_state = expected(subject, operands)
    output, state = way(operands)
    np.testing.assert_allclose(output, right, rtol=1e-4, atol=1e-4)
    ran = [slot for slot, (_, new) in zip(operands["state_slots"], lengths, strict=False) if new]
    np.testing.assert_allclose(state[ran], right_state[ran], rtol=1e-4, atol=1e-4)
    idle = np.setdiff1d(np.arange(1, len(state)), ran)
    np.testing.assert_array_equal(state[idle], operands["state"][idle])
    np.testing.assert_array_equal(state[0], operands["state"][0])


@pytest.mark.parametrize(("subject", "way"), ALL)
@settings(max_examples=12, deadline=None)
@given(lengths=steps, seed=st.integers(0, 2**31))
@example(lengths=[(2, 1), (9, 70), (0, 3)], seed=0)
def test_a_step_is_a_loop_over_tokens(subject: Subject, way: Way, lengths: Lengths, seed: int) -> None:
    check_step(subject, way, lengths, ROWS, seed)


@pytest.mark.parametrize(("subject", "way"), ALL)
def test_a_sequence_in_chunks_and_token_by_token_is_the_whole_sequence(subject: Subject, way: Way) -> None:
    """Two sequences side by side, in slots of their own; the first in chunks of 61, 9, 1, 1 and 1 rows, the other one in a step."""
    whole = subject.operands(ROWS, REQUESTS, [(0, 73)], 1)
    output, state = way(whole)
    other = subject.operands(ROWS, REQUESTS, [(0, 3)], 2)
    done, found = 0, []
    current = np.full_like(whole["state"], np.nan)
    current[0] = 0
    for new in (61, 9, 1, 1, 1):
        step = dict(whole)
        for name in subject.rows:
            rows = np.zeros_like(whole[name])
            rows[:3] = other[name][:3]
            rows[3 : 3 + new] = whole[name][done : done + new]
            step[name] = rows
        lengths = [(0, 3), (done, new)]
        padding = [0] * (REQUESTS - 2)
        step["state_slots"] = np.array([4, 2, *padding], np.int32)
        step["seq_lens"] = np.array([3, done + new, *padding], np.int32)
        step["query_start_loc"] = np.array([0, *np.cumsum([count for _, count in lengths]), *[3 + new] * 4], np.int32)
        made, current = way(step | {"state": current})
        found.append(made[3 : 3 + new])
        done += new
    np.testing.assert_allclose(np.concatenate(found), output[:73], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(current[2], state[whole["state_slots"][0]], rtol=1e-5, atol=1e-5)
    assert np.isnan(current[[1, 3, 5]]).all()


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_requests_outside_the_batch_or_the_slots_are_errors(subject: Subject) -> None:
    operands = {name: torch.from_numpy(one) for name, one in subject.operands(6, 2, [(3, 2), (0, 4)], 3).items()}

    def refusal(**changed: list[int]) -> str:
        wrong = {name: torch.tensor(numbers, dtype=torch.int32) for name, numbers in changed.items()}
        with pytest.raises(IndexError) as problem:
            subject.kernel.check(**operands | wrong, **subject.attributes)
        return str(problem.value).removeprefix(f"{subject.kernel.name}: ")

    subject.kernel.check(**operands, **subject.attributes)
    assert refusal(state_slots=[1, 3]) == "request 1: its state is in slot 3, the state has 3 slots"
    assert refusal(query_start_loc=[0, 2, 7]) == "request 1: rows 2 to 7 of query_start_loc are not in a batch of 6"
    assert refusal(query_start_loc=[1, 2, 6]) == "query_start_loc begins at 1, not at 0"
    assert refusal(seq_lens=[5, 3]) == "request 1: seq_lens is 3, this step alone has 4 rows of it"
    wrong = {"state_slots": torch.tensor([1, -7], dtype=torch.int32), "query_start_loc": torch.tensor([0, 2, 2]).int()}
    subject.kernel.check(**operands | wrong, **subject.attributes)  # nobody reads the slot of a request without rows


# ---- without a state ---------------------------------------------------------------------------------------------


class Calls(torch.nn.Module):
    """A module that calls one op."""

    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.attributes = name, attributes

    def forward(self, *operands: torch.Tensor) -> Any:
        return getattr(torch.ops.fxhlo, self.name)(*operands, **self.attributes)


def sequence(subject: Subject, rows: int, seed: int) -> Tensors:
    """Operands of one sequence without a state."""
    operands = subject.operands(rows, 1, [(0, rows)], seed)
    return {name: torch.from_numpy(array) for name, array in operands.items() if name not in STEP}


@pytest.mark.parametrize("inlined", [False, True], ids=["implementation", "reference"])
@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != "conv without silu, 3 taps"])
def test_a_lowered_module(name: str, inlined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sequence, with the kernel's implementation, and with its decomposition in the portable module."""
    subject = SUBJECTS[name]
    register_torch_ops()
    operands, attributes = sequence(subject, 21, 4), subject.attributes | {"layer": "0"}
    module = fxhlo.lower(Calls(subject.stateless.name, attributes), tuple(operands.values()))
    if inlined:
        bare = {one: replace(kernel, implementations=()) for one, kernel in kernels().items()}
        monkeypatch.setattr(legalize, "kernels", lambda: bare)
    (result,) = module.compile()(*operands.values())
    step = subject.operands(21, 1, [(0, 21)], 4)
    right, _ = expected(subject, step)
    np.testing.assert_allclose(np.asarray(result), right, rtol=1e-4, atol=1e-4)


# ---- transformers ------------------------------------------------------------------------------------------------


def called(subject: Subject, operands: Tensors, **attributes: Any) -> torch.Tensor:
    register_torch_ops()
    return Calls(subject.stateless.name, subject.attributes | attributes | {"layer": "0"})(*operands.values())


def test_transformers_convolution() -> None:
    from transformers.models.mamba2.modeling_mamba2 import causal_conv1d_fn

    given = sequence(SUBJECTS["conv"], 13, 5)
    right = causal_conv1d_fn(given["values"].T[None], given["weight"], given["bias"], activation="silu")[0].T
    torch.testing.assert_close(called(SUBJECTS["conv"], given), right)


def test_transformers_mamba() -> None:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    given = sequence(SUBJECTS["selective scan"], 13, 6)
    x, dt, b, c = (given[name].T[None] for name in ("x", "dt", "b", "c"))
    right = mamba_selective_scan(
        x, dt, given["a"], b, c, given["d"], delta_bias=given["dt_bias"], delta_softplus=True, return_last_state=False
    )
    torch.testing.assert_close(called(SUBJECTS["selective scan"], given), right[0].T, rtol=1e-4, atol=1e-5)


def test_transformers_mamba_2() -> None:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    given = sequence(SUBJECTS["ssd"], 21, 7)
    x, dt, b, c = (given[name][None] for name in ("x", "dt", "b", "c"))
    right = mamba2_chunk_scan(
        x, dt, given["a"], b, c, chunk_size=8, D=given["d"], dt_bias=given["dt_bias"], dt_softplus=True
    )
    torch.testing.assert_close(called(SUBJECTS["ssd"], given), right[0], rtol=1e-4, atol=1e-5)


def test_transformers_gated_delta_net() -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    given = sequence(SUBJECTS["delta, a decay a head"], 70, 8)
    q, k = (given[name].repeat_interleave(2, dim=1)[None] for name in ("q", "k"))
    right, _ = torch_chunk_gated_delta_rule(
        q, k, *(given[name][None] for name in ("v", "g", "beta")), use_qk_l2norm_in_kernel=True
    )
    found = called(SUBJECTS["delta, a decay a head"], given, scale=q.shape[-1] ** -0.5)
    torch.testing.assert_close(found, right[0], rtol=1e-4, atol=1e-5)


def test_transformers_kimi_delta_attention() -> None:
    from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention

    given = sequence(SUBJECTS["delta, a decay a channel"], 70, 9)
    right, _ = chunk_kimi_delta_attention(*(one[None] for one in given.values()), use_qk_l2norm_in_kernel=True)
    found = called(SUBJECTS["delta, a decay a channel"], given, scale=given["q"].shape[-1] ** -0.5)
    torch.testing.assert_close(found, right[0], rtol=1e-4, atol=1e-5)


def test_transformers_lightning_attention() -> None:
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    config = MiniMaxConfig(
        hidden_size=32, num_attention_heads=4, head_dim=8, num_hidden_layers=2, block_size=16,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    layer = MiniMaxLightningAttention(config, 0).eval()
    hidden = torch.randn(1, 37, 32, generator=torch.Generator().manual_seed(0))
    qkv = layer.act_fn(layer.qkv_proj(hidden))[0].reshape(37, 4, 24)
    q, k, v = (one.contiguous() for one in qkv.split(8, dim=-1))
    found = called(SUBJECTS["lightning"], {"q": q, "k": k, "v": v, "slopes": layer.slope_rate.flatten()})
    found = layer.out_proj(torch.sigmoid(layer.output_gate(hidden[0])) * layer.norm(found.flatten(1)))
    right, _ = layer(hidden, (hidden, hidden), None)
    torch.testing.assert_close(found, right[0], rtol=1e-4, atol=1e-5)
