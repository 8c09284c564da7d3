"""`fxhlo.lightning_index`: which positions each token of one sequence attends to in sparse attention (DSA), without a cache.

It represents a captured vLLM indexer until `passes/fx/latent_attention.py` gives it a cache of its keys.
"""

from ..spec import FLOATING, Kernel
from .reference import fake, lightning_index

KERNEL = Kernel(
    name="lightning_index",
    version=1,
    schema="lightning_index(Tensor query, Tensor key, Tensor weights, *, str layer, int count) -> Tensor",
    reference=lightning_index,
    fake=fake,
    dtypes=dict.fromkeys(("query", "key", "weights"), FLOATING),
    source="DeepSeek-AI 2025 (DeepSeek-V3.2), section 2.1",
)
