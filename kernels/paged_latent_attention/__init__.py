"""`fxhlo.ragged_paged_latent_attention`: updates a paged cache of latents and attends to it (MLA), for a batch of requests of
any lengths. Prefill, chunked prefill and decode rows share one call."""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .partition import partition
from .reference import check, fake, ragged_paged_latent_attention, work

KERNEL = Kernel(
    name="ragged_paged_latent_attention",
    version=2,
    schema="ragged_paged_latent_attention(Tensor query, Tensor latent, Tensor w_uk, Tensor w_uv, Tensor kv_cache, Tensor slot_mapping, "
    "Tensor block_tables, Tensor seq_lens, Tensor query_start_loc, Tensor? selected=None, *, float scale, int sliding_window=0) "
    "-> (Tensor, Tensor)",
    reference=ragged_paged_latent_attention,
    fake=fake,
    check=check,
    dtypes={
        **dict.fromkeys(("query", "latent", "w_uk", "w_uv", "kv_cache"), FLOATING),
        **dict.fromkeys(("slot_mapping", "block_tables", "seq_lens", "query_start_loc", "selected"), ("int32",)),
    },
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas", row_major=("kv_cache",)),
        Implementation.in_folder(__name__, "cuda", "triton"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    aliases={1: 4},
    partition=partition,
    cases=cases,
    work=work,
    source="DeepSeek-AI 2024 (DeepSeek-V2), section 2.1; Kwon et al. 2023 (PagedAttention)",
)
