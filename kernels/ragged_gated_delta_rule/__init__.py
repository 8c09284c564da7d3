"""`fxhlo.ragged_gated_delta_rule`: gated delta attention (Gated DeltaNet, Kimi Delta Attention) along each request's rows, with its state in a slot."""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .partition import partition
from .reference import check, fake, ragged_gated_delta_rule, work

KERNEL = Kernel(
    name="ragged_gated_delta_rule",
    version=1,
    schema="ragged_gated_delta_rule(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor state, Tensor state_slots, "
    "Tensor seq_lens, Tensor query_start_loc, *, float scale, bool l2norm) -> (Tensor, Tensor)",
    reference=ragged_gated_delta_rule,
    fake=fake,
    check=check,
    dtypes={
        **dict.fromkeys(("q", "k", "v", "g", "beta", "state"), FLOATING),
        **dict.fromkeys(("state_slots", "seq_lens", "query_start_loc"), ("int32",)),
    },
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas", row_major=("state",)),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    aliases={1: 5},
    cases=cases,
    partition=partition,
    work=work,
    source="Yang et al., Gated delta networks, 2024, section 3; Kimi Linear, 2025, section 3",
)
