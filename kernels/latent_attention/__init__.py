"""`fxhlo.latent_attention`: causal multi-head latent attention (MLA) of one sequence without a cache.

It represents a captured vLLM MLA layer until `passes/fx/latent_attention.py` gives it a cache of latents.
"""

from ..spec import FLOATING, Kernel
from .reference import fake, latent_attention

KERNEL = Kernel(
    name="latent_attention",
    version=2,
    schema="latent_attention(Tensor query, Tensor latent, Tensor w_uk, Tensor w_uv, Tensor? selected=None, *, str layer, float scale, "
    "int sliding_window=0) -> Tensor",
    reference=latent_attention,
    fake=fake,
    dtypes={**dict.fromkeys(("query", "latent", "w_uk", "w_uv"), FLOATING), "selected": ("int32",)},
    source="DeepSeek-AI 2024 (DeepSeek-V2), section 2.1; vllm/model_executor/layers/attention/mla_attention.py",
)
