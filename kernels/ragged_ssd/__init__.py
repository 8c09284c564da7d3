"""`fxhlo.ragged_ssd`: Mamba 2's state space (structured state space duality) along each request's rows, with its state in a slot."""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .partition import partition
from .reference import check, fake, ragged_ssd, work

KERNEL = Kernel(
    name="ragged_ssd",
    version=1,
    schema="ragged_ssd(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor d, Tensor dt_bias, Tensor state, "
    "Tensor state_slots, Tensor seq_lens, Tensor query_start_loc) -> (Tensor, Tensor)",
    reference=ragged_ssd,
    fake=fake,
    check=check,
    dtypes={
        **dict.fromkeys(("x", "dt", "a", "b", "c", "d", "dt_bias", "state"), FLOATING),
        **dict.fromkeys(("state_slots", "seq_lens", "query_start_loc"), ("int32",)),
    },
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas", row_major=("state",)),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    aliases={1: 7},
    cases=cases,
    partition=partition,
    work=work,
    source="Dao and Gu, Transformers are SSMs, 2024, sections 3 and 6",
)
