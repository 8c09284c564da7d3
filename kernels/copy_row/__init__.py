"""`fxhlo.copy_row`: copies one row of a state to another, in place, so that a request can go on while the first is kept."""

from ..spec import Implementation, Kernel
from .cases import DTYPES, cases
from .reference import check, copy_row, fake, work

KERNEL = Kernel(
    name="copy_row",
    version=1,
    schema="copy_row(Tensor state, Tensor source, Tensor destination) -> Tensor",
    reference=copy_row,
    fake=fake,
    check=check,
    dtypes={"state": DTYPES, "source": ("int32",), "destination": ("int32",)},
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    aliases={0: 0},
    cases=cases,
    work=work,
    source="preprocess_mamba of vllm/v1/worker/mamba_utils.py, vLLM 0.32.0",
)
