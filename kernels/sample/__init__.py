"""`fxhlo.sample`: greedy sampling, or temperature, min-p, top-k, top-p and a seeded draw, per request."""

from ..partition import replicated
from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .reference import fake, sample

KERNEL = Kernel(
    name="sample",
    version=1,
    schema="sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seeds, "
    "Tensor steps) -> Tensor",
    partition=replicated(),
    reference=sample,
    fake=fake,
    dtypes={
        "logits": FLOATING[:3],
        **dict.fromkeys(("temperature", "top_p", "min_p"), ("float32",)),
        **dict.fromkeys(("top_k", "seeds", "steps"), ("int32",)),
    },
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas"),
        Implementation.in_folder(__name__, "cuda", "triton"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    cases=cases,
    source="vllm/v1/sample/sampler.py and ops/topk_topp_sampler.py of vLLM 0.32.0; Threefry: Salmon et al., SC 2011",
)
