"""An op of your own: torch knows its meaning, a rule of fxhlo lowers it. docs/add_an_op.md explains each part."""

import torch

import fxhlo
from fxhlo.lowering.build import add, multiply
from fxhlo.lowering.emit.context import Context
from fxhlo.lowering.promote import computed
from fxhlo.lowering.registry import rule
from fxhlo.lowering.types import Value


@torch.library.custom_op("example::squared_sum", mutates_args=())
def squared_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x * x + y * y


@squared_sum.register_fake
def _(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@rule("example.squared_sum.default")
def lower_squared_sum(ctx: Context, x: Value, y: Value) -> Value:
    return computed(lambda x, y: add(multiply(x, x), multiply(y, y)), ctx.shape, ctx.dtype, x, y)


class Norm(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.ops.example.squared_sum(x, y).sqrt()


x, y = torch.randn(3, 4), torch.randn(3, 4)
(result,) = fxhlo.lower(Norm(), (x, y)).compile()(x, y)
torch.testing.assert_close(torch.from_dlpack(result), Norm()(x, y))
print("equal to eager torch")
