"""`fxhlo.varlen_attention`: attention of several sequences side by side without a KV cache, each to its own rows.

What encoders and models that embed a text do: `passes/fx/varlen_attention.py` makes it of a captured layer whose attention is bidirectional.
"""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .partition import partition
from .reference import check, fake, varlen_attention

KERNEL = Kernel(
    name="varlen_attention",
    version=1,
    schema="varlen_attention(Tensor query, Tensor key, Tensor value, Tensor query_start_loc, Tensor? sinks=None, *, "
    "float scale, int sliding_window, float soft_cap, bool causal) -> Tensor",
    partition=partition,
    reference=varlen_attention,
    fake=fake,
    check=check,
    dtypes={**dict.fromkeys(("query", "key", "value", "sinks"), FLOATING), "query_start_loc": ("int32",)},
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "flash"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    cases=cases,
    source="vllm/model_executor/layers/attention/encoder_only_attention.py; Dao et al. 2022, FlashAttention, variable lengths",
)
