"""`fxhlo.ragged_causal_conv1d`: a short depthwise convolution along each request's rows, whose last rows are kept in a slot for the next step."""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .partition import partition
from .reference import check, fake, ragged_causal_conv1d, work

KERNEL = Kernel(
    name="ragged_causal_conv1d",
    version=1,
    schema="ragged_causal_conv1d(Tensor values, Tensor weight, Tensor? bias, Tensor state, Tensor state_slots, Tensor seq_lens, "
    "Tensor query_start_loc, *, bool silu) -> (Tensor, Tensor)",
    reference=ragged_causal_conv1d,
    fake=fake,
    check=check,
    dtypes={
        **dict.fromkeys(("values", "weight", "bias", "state"), FLOATING),
        **dict.fromkeys(("state_slots", "seq_lens", "query_start_loc"), ("int32",)),
    },
    implementations=(Implementation.in_folder(__name__, "cpu", "native", uniform=True),),
    aliases={1: 3},
    cases=cases,
    partition=partition,
    on_a_device=Implementation.in_folder(__name__, "any", "xla", file="partition_xla"),
    work=work,
    source="vllm/model_executor/layers/mamba/ops/causal_conv1d.py of vLLM 0.32.0; Gu and Dao, Mamba, 2023, section 3.4",
)
