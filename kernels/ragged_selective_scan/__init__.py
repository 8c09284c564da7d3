"""`fxhlo.ragged_selective_scan`: Mamba's selective state space along each request's rows, with its state in a slot."""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .partition import partition
from .reference import check, fake, ragged_selective_scan, work

KERNEL = Kernel(
    name="ragged_selective_scan",
    version=1,
    schema="ragged_selective_scan(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor d, Tensor? dt_bias, Tensor state, "
    "Tensor state_slots, Tensor seq_lens, Tensor query_start_loc) -> (Tensor, Tensor)",
    reference=ragged_selective_scan,
    fake=fake,
    check=check,
    dtypes={
        **dict.fromkeys(("x", "dt", "a", "b", "c", "d", "dt_bias", "state"), FLOATING),
        **dict.fromkeys(("state_slots", "seq_lens", "query_start_loc"), ("int32",)),
    },
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    aliases={1: 7},
    cases=cases,
    partition=partition,
    work=work,
    source="Gu and Dao, Mamba: linear-time sequence modeling with selective state spaces, 2023, algorithm 2",
)
