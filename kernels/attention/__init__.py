"""`fxhlo.attention`: causal self-attention over one sequence without a cache. This is how a captured vLLM attention
layer stands in the graph until `passes/fx/paged_attention.py` gives it a KV cache."""

from ..spec import FLOATING, Implementation, Kernel
from . import tpu
from .cases import cases
from .reference import attention, fake

KERNEL = Kernel(
    name="attention",
    version=1,
    schema="attention(Tensor query, Tensor key, Tensor value, Tensor? sinks, Tensor? alibi_slopes, *, "
    "str layer, float scale, int sliding_window, float soft_cap) -> Tensor",
    reference=attention,
    fake=fake,
    dtypes=dict.fromkeys(("query", "key", "value", "sinks", "alibi_slopes"), FLOATING),
    implementations=(Implementation("tpu", "flash", tpu.attention, tpu.supports),),
    cases=cases,
    source="vllm/v1/attention/backend.py AttentionImpl.forward; Vaswani et al. 2017, section 3.2",
)
