"""`fxhlo.moe`: the experts of a mixture: each row is multiplied by the weights of the experts that its router chose, and their results are summed."""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .partition import partition
from .reference import fake, moe, work

KERNEL = Kernel(
    name="moe",
    version=1,
    schema="moe(Tensor x, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids, Tensor? w13_bias=None, "
    "Tensor? w2_bias=None, *, str activation, float limit, float alpha, float beta, bool weight_on_input) -> Tensor",
    partition=partition,
    reference=moe,
    fake=fake,
    dtypes=dict.fromkeys(("x", "w13", "w2", "w13_bias", "w2_bias"), FLOATING)
    | {"topk_weights": ("float32",), "topk_ids": ("int32",)},
    implementations=(
        Implementation.in_folder(__name__, "cpu", "native", uniform=True),
        Implementation.in_folder(__name__, "tpu", "pallas", row_major=("w13", "w2")),
        Implementation.in_folder(__name__, "cuda", "triton"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    cases=cases,
    work=work,
    source="Shazeer et al., Outrageously large neural networks, 2017; vllm/model_executor/layers/fused_moe/activation.py",
)
