"""`fxhlo.logprobs`: log-probabilities of the sampled token and of the top tokens, and the sampled token's rank."""

from ..partition import replicated
from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .reference import check, fake, logprobs

KERNEL = Kernel(
    name="logprobs",
    version=2,
    schema="logprobs(Tensor logits, Tensor tokens, Tensor enabled, Tensor? allowed_mask=None, *, int count) -> (Tensor, Tensor, Tensor)",
    partition=replicated(3),
    reference=logprobs,
    fake=fake,
    check=check,
    dtypes={"logits": FLOATING[:3], "tokens": ("int32",), "enabled": ("int32",), "allowed_mask": ("int32",)},
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    cases=cases,
    source="vllm/v1/sample/sampler.py and structured_output/utils.py of vLLM 0.32.0, logprobs_mode raw_logprobs",
)
