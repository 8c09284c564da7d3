"""`fxhlo.process_logits`: allowed tokens, logit bias, and repetition, frequency and presence penalties."""

from ..partition import replicated
from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .reference import fake, process_logits

KERNEL = Kernel(
    name="process_logits",
    version=1,
    schema="process_logits(Tensor logits, Tensor flags, Tensor allowed_mask, Tensor bias_ids, Tensor bias_values, "
    "Tensor seen_ids, Tensor seen_counts, Tensor repetition_penalty, Tensor frequency_penalty, "
    "Tensor presence_penalty) -> Tensor",
    partition=replicated(),
    reference=process_logits,
    fake=fake,
    dtypes={
        "logits": FLOATING[:3],
        **dict.fromkeys(("flags", "allowed_mask", "bias_ids", "seen_ids", "seen_counts"), ("int32",)),
        **dict.fromkeys(("bias_values", "repetition_penalty", "frequency_penalty", "presence_penalty"), ("float32",)),
    },
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    cases=cases,
    source="vllm/v1/sample/sampler.py, ops/penalties.py and logits_processor/builtin.py of vLLM 0.32.0",
)
