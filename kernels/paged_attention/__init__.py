"""`fxhlo.ragged_paged_attention`: updates a paged KV cache and attends to it, for a batch of requests of any lengths.
Prefill, chunked prefill and decode rows share one call."""

from ..spec import FLOAT8, FLOATING, Implementation, Kernel
from .cases import cases
from .partition import partition
from .reference import check, fake, ragged_paged_attention, work

KERNEL = Kernel(
    name="ragged_paged_attention",
    version=2,
    schema="ragged_paged_attention(Tensor query, Tensor key, Tensor value, Tensor kv_cache, Tensor slot_mapping, "
    "Tensor block_tables, Tensor seq_lens, Tensor query_start_loc, Tensor? sinks, Tensor? alibi_slopes, "
    "Tensor? k_scale=None, Tensor? v_scale=None, *, float scale, int sliding_window, float soft_cap, "
    "int chunk=0) -> (Tensor, Tensor)",
    partition=partition,
    over_context=f"{__name__}.partition_xla",
    reference=ragged_paged_attention,
    fake=fake,
    check=check,
    dtypes={
        **dict.fromkeys(("query", "key", "value", "sinks", "alibi_slopes"), FLOATING),
        **dict.fromkeys(("slot_mapping", "block_tables", "seq_lens", "query_start_loc"), ("int32",)),
        **dict.fromkeys(("k_scale", "v_scale"), ("float32",)),
        "kv_cache": (*FLOATING, *FLOAT8, "int8"),
    },
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas", row_major=("kv_cache",)),
        Implementation.in_folder(__name__, "cuda", "triton"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    aliases={1: 3},
    cases=cases,
    work=work,
    source="Kwon et al. 2023 (PagedAttention); jax/experimental/pallas/ops/tpu/ragged_paged_attention for the layout",
)
