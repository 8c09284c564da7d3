"""`fxhlo.attention`: attention of one sequence without a cache, causal or of every row on every key.

Causal, this is how a captured vLLM attention layer stands in the graph until `passes/fx/paged_attention.py` gives it a KV cache; else
it is an encoder's, or one sequence looking at another. Heads of several sequences of one length may stand side by side.
"""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .reference import attention, fake

KERNEL = Kernel(
    name="attention",
    version=2,
    schema="attention(Tensor query, Tensor key, Tensor value, Tensor? sinks, Tensor? alibi_slopes, *, "
    "str layer, float scale, int sliding_window, float soft_cap, bool causal=True) -> Tensor",
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
