"""CPU kernels in C++, compiled at first use and called by XLA through its FFI.

Comes in: the machine's C++ compiler. Goes out: FFI targets on platform "cpu" (`TARGETS`), ready for
`jax.ffi.ffi_call` and for `stablehlo.custom_call` once `register()` has run. Guaranteed: importing this
module compiles nothing and does not import jax; `planned()` returns the reason why kernels are unavailable, also without
compiling; `unavailable()` builds them first.

Every target returns the same bits for a row in any batch, and takes row-major contiguous tensors. It checks its operands
before it accesses their memory (door.h): a wrong dtype or size, or an out-of-range index to read, is an error
of the call that names the operand and the position:

- `fxhlo_linear(x [M, K], w [N, K]) -> [M, N]` and `fxhlo_linear_bias(x, w, bias [N])`: float32, bfloat16 or float16,
  sums in float32; the result has the operands' dtype or float32. `fxhlo_linear_used(x, w, bias [N] or [0], used int32[1])` computes
  the first `used` rows, and the others are zero.
- `fxhlo_rms_norm(x [..., K], w [K]; epsilon) -> [..., K]` of the weight's dtype.
- `fxhlo_silu_and_mul(x [M, 2 N]) -> [M, N]`: silu of the first half times the second, rounded in between.
- `fxhlo_moe`: operands, result and attributes of the composite of this name; an absent bias has no experts. The library's
  `fxhlo_moe_weight_bytes()` counts the bytes of weights that it has read.
- `fxhlo_process_logits`, `fxhlo_sample`, `fxhlo_logprobs`: operands and results of the composites of these names.
- `fxhlo_ragged_paged_attention(q, k, v, kv_cache, slot_mapping, block_tables, seq_lens, query_start_loc, sinks,
  alibi_slopes; scale, sliding_window, soft_cap) -> (out, kv_cache)`: see attention.cc for shapes.
- `fxhlo_ragged_paged_latent_attention(q, latent, kv_cache, slot_mapping, block_tables, seq_lens, query_start_loc; value_size,
  scale, sliding_window) -> (out, kv_cache)`: see latent_attention.cc for shapes.
- `fxhlo_ragged_causal_conv1d`, `fxhlo_ragged_selective_scan`, `fxhlo_ragged_decayed_attention` and `fxhlo_ragged_gated_delta_rule`:
  operands and a step's requests with the state in slots, see recurrent.h and recurrent_conv.cc, recurrent_scan.cc, recurrent_attention.cc.
- `fxhlo_copy_row(state [R, ...], source [], destination []) -> state`: of float32, bfloat16 or float16; a row of it to another, in place.
- `fxhlo_varlen_attention(q, k, v, query_start_loc, sinks; scale, sliding_window, soft_cap, causal) -> out`: see
  varlen_attention.cc for shapes.
"""

from .build import (
    TARGETS,
    forget_failure,
    identity,
    library,
    planned,
    prepare,
    ready,
    register,
    switched_off,
    take,
    unavailable,
)  # fmt: skip

__all__ = [
    "TARGETS", "forget_failure", "identity", "library", "planned", "prepare", "ready", "register", "switched_off", "take", "unavailable",
]  # fmt: skip
