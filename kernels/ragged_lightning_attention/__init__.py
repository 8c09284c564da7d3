"""`fxhlo.ragged_lightning_attention`: linear attention with a fixed decay a head along each request's rows, with its state in a slot."""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .partition import partition
from .reference import check, fake, ragged_lightning_attention, work

KERNEL = Kernel(
    name="ragged_lightning_attention",
    version=1,
    schema="ragged_lightning_attention(Tensor q, Tensor k, Tensor v, Tensor slopes, Tensor state, Tensor state_slots, "
    "Tensor seq_lens, Tensor query_start_loc) -> (Tensor, Tensor)",
    reference=ragged_lightning_attention,
    fake=fake,
    check=check,
    dtypes={
        **dict.fromkeys(("q", "k", "v", "slopes", "state"), FLOATING),
        **dict.fromkeys(("state_slots", "seq_lens", "query_start_loc"), ("int32",)),
    },
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas", row_major=("state",)),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    aliases={1: 4},
    cases=cases,
    partition=partition,
    work=work,
    source="Qin et al., Lightning attention-2, 2024; vllm/model_executor/layers/lightning_attn.py of vLLM 0.32.0",
)
