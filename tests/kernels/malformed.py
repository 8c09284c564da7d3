"""Calls each native kernel with operands and results that it must refuse; a JSON line for each: {target, what, error}.

Run in a process of its own: a kernel that does not refuse may end it. error: None where there was none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import jax
import ml_dtypes
import numpy as np

from fxhlo.runtime.core import native

F32, I32 = np.float32, np.int32


@dataclass(frozen=True)
class Call:
    """A good call of one target. results: shape and dtype of each."""

    target: str
    operands: dict[str, np.ndarray]
    results: tuple[tuple[tuple[int, ...], type], ...]
    attributes: dict[str, np.generic | str] = field(default_factory=dict)

    def run(self) -> None:
        results = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.results)
        call = jax.ffi.ffi_call(self.target, results)
        jax.block_until_ready(jax.jit(lambda *arrays: call(*arrays, **self.attributes))(*self.operands.values()))


def floats(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=F32).reshape(shape)


R, V, T = 3, 70, 5
PAGED = {
    "query": floats(T, 4, 8), "key": floats(T, 2, 8), "value": floats(T, 2, 8), "kv_cache": floats(6, 4, 4, 8),
    "slot_mapping": np.arange(T, dtype=I32), "block_tables": np.arange(4, dtype=I32).reshape(2, 2),
    "seq_lens": np.array([6, 3], I32), "query_start_loc": np.array([0, 3, 5], I32),
    "sinks": floats(4), "alibi_slopes": floats(4),
}  # fmt: skip
STEP = {
    "state_slots": np.array([2, 1], I32), "seq_lens": np.array([6, 2], I32), "query_start_loc": np.array([0, 3, 5], I32),
}  # fmt: skip
CALLS = (
    Call("fxhlo_linear", {"values": floats(3, 5), "weight": floats(4, 5)}, (((3, 4), F32),)),
    Call("fxhlo_linear_bias", {"values": floats(3, 5), "weight": floats(4, 5), "bias": floats(4)}, (((3, 4), F32),)),
    Call(
        "fxhlo_linear_used",
        {"values": floats(3, 5), "weight": floats(4, 5), "bias": floats(4), "used": np.array([2], I32)},
        (((3, 4), F32),),
    ),
    Call("fxhlo_rms_norm", {"values": floats(3, 5), "weight": floats(5)}, (((3, 5), F32),), {"epsilon": F32(1e-5)}),
    Call("fxhlo_silu_and_mul", {"values": floats(3, 10)}, (((3, 5), F32),)),
    Call(
        "fxhlo_moe",
        {
            "x": floats(3, 5), "w13": floats(4, 12, 5), "w2": floats(4, 5, 6), "topk_weights": floats(3, 2),
            "topk_ids": np.arange(6, dtype=I32).reshape(3, 2), "w13_bias": floats(4, 12), "w2_bias": floats(4, 5),
        },
        (((3, 5), F32),),
        {"activation": "silu", "limit": F32(0), "alpha": F32(1), "beta": F32(0), "weight_on_input": np.bool_(False)},
    ),
    Call(
        "fxhlo_sample",
        {
            "logits": floats(R, V), "temperature": np.ones(R, F32), "top_k": np.full(R, 5, I32),
            "top_p": np.full(R, 0.9, F32), "min_p": np.zeros(R, F32), "seeds": np.zeros((R, 2), I32),
            "steps": np.zeros(R, I32),
        },
        (((R,), I32),),
    ),
    Call(
        "fxhlo_process_logits",
        {
            "logits": floats(R, V), "flags": np.ones(3, I32), "allowed_mask": np.full((R, 3), -1, I32),
            "bias_ids": np.full((R, 4), 2, I32), "bias_values": floats(R, 4), "seen_ids": np.full((R, 6), 3, I32),
            "seen_counts": np.ones((R, 6), I32), "repetition_penalty": np.ones(R, F32),
            "frequency_penalty": np.ones(R, F32), "presence_penalty": np.ones(R, F32),
        },
        (((R, V), F32),),
    ),
    Call(
        "fxhlo_logprobs",
        {"logits": floats(R, V), "tokens": np.arange(R, dtype=I32), "enabled": np.array(1, I32),
         "allowed_mask": np.full((R, 3), 7, I32)},
        (((R, 6), I32), ((R, 6), F32), ((R,), I32)),
    ),
    Call(
        "fxhlo_ragged_paged_latent_attention",
        {"query": PAGED["query"], "latent": floats(T, 9), "w_uk": floats(4, 6, 7), "w_uv": floats(4, 7, 5), "kv_cache": floats(6, 4, 9),
         **{name: PAGED[name] for name in ("slot_mapping", "block_tables", "seq_lens", "query_start_loc")}},
        (((T, 4, 5), F32), ((6, 4, 9), F32)),
        {"scale": F32(0.3), "sliding_window": np.int64(0), "form": np.int64(0)},
    ),
    Call(
        "fxhlo_ragged_paged_attention",
        PAGED,
        (((T, 4, 8), F32), ((6, 4, 4, 8), F32)),
        {"scale": F32(0.3), "sliding_window": np.int64(0), "soft_cap": F32(0), "chunk": np.int64(0)},
    ),
    Call(
        "fxhlo_varlen_attention",
        {name: PAGED[name] for name in ("query", "key", "value", "query_start_loc", "sinks")},
        (((T, 4, 8), F32),),
        {"scale": F32(0.3), "sliding_window": np.int64(0), "soft_cap": F32(0), "causal": np.bool_(False)},
    ),
    Call(
        "fxhlo_ragged_causal_conv1d",
        {"values": floats(T, 7), "weight": floats(7, 4), "bias": floats(7), "state": floats(4, 3, 7), **STEP},
        (((T, 7), F32), ((4, 3, 7), F32)),
        {"silu": np.int64(1)},
    ),
    Call(
        "fxhlo_ragged_selective_scan",
        {
            "x": floats(T, 7), "step": floats(T, 7), "a": floats(7, 6), "b": floats(T, 6), "c": floats(T, 6), "d": floats(7),
            "state": floats(4, 7, 6), **STEP,
        },
        (((T, 7), F32), ((4, 7, 6), F32)),
    ),
    Call(
        "fxhlo_ragged_decayed_attention",
        {
            "q": floats(T, 2, 8), "k": floats(T, 2, 8), "v": floats(T, 4, 6), "rate": floats(T, 4), "decay": floats(T, 4),
            "skip": floats(4), "state": floats(4, 4, 6, 8), **STEP,
        },
        (((T, 4, 6), F32), ((4, 4, 6, 8), F32)),
    ),
    Call(
        "fxhlo_copy_row",
        {"state": floats(4, 3, 7), "source": np.array(3, I32), "destination": np.array(1, I32)},
        (((4, 3, 7), F32),),
    ),
    *(
        Call(
            "fxhlo_ragged_gated_delta_rule",
            {
                "q": floats(T, 2, 8), "k": floats(T, 2, 8), "v": floats(T, 4, 6), "g": g, "beta": floats(T, 4),
                "state": floats(4, 4, 6, 8), **STEP,
            },
            (((T, 4, 6), F32), ((4, 4, 6, 8), F32)),
            {"scale": F32(0.3), "l2norm": np.int64(1)},
        )
        for g in (floats(T, 4), floats(T, 4, 8))
    ),
)  # fmt: skip
RECURRENT = (
    "fxhlo_ragged_causal_conv1d", "fxhlo_ragged_selective_scan", "fxhlo_ragged_decayed_attention", "fxhlo_ragged_gated_delta_rule",
)  # fmt: skip

READ_OUTSIDE = {
    ("fxhlo_logprobs", "tokens"): (-1, V, 2_000_000_000, -(2**31)),
    ("fxhlo_ragged_paged_latent_attention", "block_tables"): (-1, 6, 2**31 - 1, -(2**31)),
    ("fxhlo_ragged_paged_latent_attention", "seq_lens"): (9, 2**31 - 1),
    ("fxhlo_ragged_paged_latent_attention", "query_start_loc"): (-1, 6, 2**31 - 1, -(2**31)),
    ("fxhlo_ragged_paged_attention", "block_tables"): (-1, 6, 2**31 - 1, -(2**31)),
    ("fxhlo_ragged_paged_attention", "seq_lens"): (9, 2**31 - 1),
    ("fxhlo_ragged_paged_attention", "query_start_loc"): (-1, 6, 2**31 - 1, -(2**31)),
    **{(target, "state_slots"): (-1, 4, 2**31 - 1, -(2**31)) for target in RECURRENT},
    **{(target, "seq_lens"): (2, -1, -(2**31)) for target in RECURRENT},
    **{(target, "query_start_loc"): (-1, 6, 2**31 - 1, -(2**31)) for target in RECURRENT},
    **{("fxhlo_copy_row", name): (-1, 4, 2**31 - 1, -(2**31)) for name in ("source", "destination")},
    ("fxhlo_varlen_attention", "query_start_loc"): (-1, 6, 2**31 - 1, -(2**31)),
}
"""Values that name nothing, for operands whose values are read as places."""


def malformed(call: Call) -> Iterator[tuple[str, Call]]:
    """Every operand and every result with another rank, another dtype, and each of its sizes one off."""
    for name, array in call.operands.items():
        other = np.float16 if array.dtype.kind == "f" else F32
        for what, changed in (
            ("rank", array[None]),
            ("flat", array.reshape(-1) if array.ndim > 1 else array.reshape(-1)[0]),
            ("dtype", array.astype(other)),
            ("int8", array.astype(np.int8)),
            ("float8", array.astype(ml_dtypes.float8_e4m3fn)),
            *((f"short {axis}", array.take(range(size - 1), axis)) for axis, size in enumerate(array.shape)),
            *((f"empty {axis}", array.take([], axis)) for axis in range(array.ndim)),
            *((f"long {axis}", np.concatenate([array, array], axis)) for axis in range(array.ndim)),
        ):
            if changed.shape != array.shape or changed.dtype != array.dtype:
                yield f"{name}: {what}", replace(call, operands=call.operands | {name: np.array(changed)})
    for index, (shape, dtype) in enumerate(call.results):
        for what, changed_result in (
            ("rank", ((1, *shape), dtype)),
            ("dtype", (shape, np.int16)),
            *(
                (f"short {axis}", ((*shape[:axis], size - 1, *shape[axis + 1 :]), dtype))
                for axis, size in enumerate(shape)
            ),
        ):
            results = (*call.results[:index], changed_result, *call.results[index + 1 :])
            yield f"result {index}: {what}", replace(call, results=results)


def outside(call: Call) -> Iterator[tuple[str, Call]]:
    for (target, name), numbers in READ_OUTSIDE.items():
        for number in numbers if target == call.target else ():
            changed = call.operands[name].copy()
            changed.reshape(-1)[0 if number < 0 or name != "query_start_loc" else 1] = number
            yield f"{name}: {number}", replace(call, operands=call.operands | {name: changed})


FINE = {
    ("fxhlo_sample", "logits: short 1"),  # another vocabulary
    ("fxhlo_sample", "logits: long 1"),
    ("fxhlo_linear_used", "bias: empty 0"),  # absent
    ("fxhlo_moe", "w13_bias: empty 0"),
    ("fxhlo_moe", "w2_bias: empty 0"),
    ("fxhlo_process_logits", "logits: dtype"),  # float16, which it takes
    ("fxhlo_logprobs", "logits: dtype"),
    ("fxhlo_logprobs", "logits: short 1"),
    ("fxhlo_logprobs", "allowed_mask: empty 1"),  # absent
    ("fxhlo_ragged_paged_attention", "sinks: empty 0"),  # absent
    ("fxhlo_ragged_paged_attention", "alibi_slopes: empty 0"),
    ("fxhlo_ragged_paged_attention", "kv_cache: long 0"),  # more blocks, or a longer table
    ("fxhlo_ragged_paged_attention", "block_tables: long 1"),
    ("fxhlo_ragged_paged_latent_attention", "kv_cache: long 0"),
    ("fxhlo_ragged_paged_latent_attention", "block_tables: long 1"),
    ("fxhlo_ragged_causal_conv1d", "weight: dtype"),  # float16, which it takes
    ("fxhlo_ragged_causal_conv1d", "bias: empty 0"),  # absent
    ("fxhlo_ragged_decayed_attention", "skip: empty 0"),
    *(("fxhlo_ragged_selective_scan", f"{name}: dtype") for name in ("b", "c")),
    *((target, f"{name}: dtype") for target in RECURRENT[2:] for name in ("q", "k")),
    ("fxhlo_varlen_attention", "sinks: empty 0"),  # absent
    ("fxhlo_varlen_attention", "query_start_loc: short 0"),  # fewer requests, and rows of none
}
"""What looks malformed and is another good call, or is refused for its result's sake alone."""


def main(every: int = 1) -> None:
    native.register()
    for call in CALLS:
        call.run()  # a good call is good
        for what, bad in (*malformed(call), *outside(call))[::every]:
            if (call.target, what) in FINE:
                continue
            error: str | None = None
            try:
                bad.run()
            except Exception as problem:
                error = str(problem)
            sys.stdout.write(json.dumps({"target": call.target, "what": what, "error": error}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
