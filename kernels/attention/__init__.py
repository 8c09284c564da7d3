"""`fxhlo.attention`: attention of one sequence without a KV cache, causal or bidirectional.

Causal attention represents a captured vLLM attention layer until `passes/fx/paged_attention.py` gives it a KV cache; the
bidirectional form is an encoder's self-attention, or cross-attention. Sequences of equal length can be batched as further heads.
"""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .reference import attention, fake

KERNEL = Kernel(
    name="attention",
    version=2,
    schema="attention(Tensor query, Tensor key, Tensor value, Tensor? sinks, Tensor? alibi_slopes, *, "
    "str layer, float scale, int sliding_window, float soft_cap, bool causal=True, "
    "int chunk=0) -> Tensor",
    reference=attention,
    fake=fake,
    dtypes=dict.fromkeys(("query", "key", "value", "sinks", "alibi_slopes"), FLOATING),
    implementations=(
        Implementation.in_folder(__name__, "tpu", "flash"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    cases=cases,
    source="vllm/v1/attention/backend.py AttentionImpl.forward; Vaswani et al. 2017, section 3.2",
)
