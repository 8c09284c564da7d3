"""`fxhlo.filter_logits`: the logits that sampling draws from, after temperature, min-p, top-k and top-p."""

from ..partition import replicated
from ..spec import FLOATING, Implementation, Kernel
from .reference import fake, filter_logits

KERNEL = Kernel(
    name="filter_logits",
    version=1,
    schema="filter_logits(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor enabled) "
    "-> Tensor",
    partition=replicated(),
    reference=filter_logits,
    fake=fake,
    dtypes={
        "logits": FLOATING[:3],
        **dict.fromkeys(("temperature", "top_p", "min_p"), ("float32",)),
        **dict.fromkeys(("top_k", "enabled"), ("int32",)),
    },
    implementations=(Implementation.in_folder(__name__, "any", "xla"),),
    source="vllm/v1/sample/sampler.py and ops/topk_topp_sampler.py of vLLM 0.32.0, logprobs_mode processed_logits",
)
