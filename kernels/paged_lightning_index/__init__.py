"""`fxhlo.ragged_paged_lightning_index`: updates a paged cache of an indexer's keys and chooses which positions each row attends
to in sparse attention (DSA), for a batch of requests of any lengths."""

from ..partition import replicated
from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .reference import check, fake, ragged_paged_lightning_index, work

KERNEL = Kernel(
    name="ragged_paged_lightning_index",
    version=1,
    schema="ragged_paged_lightning_index(Tensor query, Tensor key, Tensor weights, Tensor kv_cache, Tensor slot_mapping, "
    "Tensor block_tables, Tensor seq_lens, Tensor query_start_loc, *, int count) -> (Tensor, Tensor)",
    reference=ragged_paged_lightning_index,
    fake=fake,
    check=check,
    dtypes={
        **dict.fromkeys(("query", "key", "weights", "kv_cache"), FLOATING),
        **dict.fromkeys(("slot_mapping", "block_tables", "seq_lens", "query_start_loc"), ("int32",)),
    },
    implementations=(Implementation.in_folder(__name__, "any", "xla"),),
    partition=replicated(2),
    aliases={1: 3},
    cases=cases,
    work=work,
    source="DeepSeek-AI 2025 (DeepSeek-V3.2), section 2.1; Kwon et al. 2023 (PagedAttention)",
)
