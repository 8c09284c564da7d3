"""`fxhlo.select_rows`: the rows of the hidden states that need logits. `passes/fx/select_rows.py` moves it
up the graph, so that the last layer computes only those rows."""

from ..spec import Kernel
from .partition import partition
from .reference import fake, select_rows

KERNEL = Kernel(
    name="select_rows",
    version=1,
    schema="select_rows(Tensor values, Tensor rows) -> Tensor",
    partition=partition,
    reference=select_rows,
    fake=fake,
    dtypes={"rows": ("int32",)},
    uniform=True,
    source="aten::index_select; vllm/v1/worker/gpu_model_runner.py logits_indices",
)
