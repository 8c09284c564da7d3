"""`fxhlo.latent_attention`: causal multi-head latent attention (MLA) of one sequence without a cache, in its absorbed form.

It represents a captured vLLM MLA layer until `passes/fx/latent_attention.py` gives it a cache of latents.
"""

from ..spec import FLOATING, Kernel
from .reference import fake, latent_attention

KERNEL = Kernel(
    name="latent_attention",
    version=1,
    schema="latent_attention(Tensor query, Tensor latent, Tensor? selected=None, *, str layer, int value_size, float scale, "
    "int sliding_window=0) -> Tensor",
    reference=latent_attention,
    fake=fake,
    dtypes={"query": FLOATING, "latent": FLOATING, "selected": ("int32",)},
    source="DeepSeek-AI 2024 (DeepSeek-V2), section 2.1; vllm/model_executor/layers/attention/mla_attention.py forward_mqa",
)
