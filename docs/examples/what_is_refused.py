"""What cannot be lowered is refused before anything is compiled: all of it at once, with the user's line and the next step."""

import torch

import fxhlo


class Unsupported(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x[x > 0]  # how many there are depends on data
        return chosen.sum()


problem: fxhlo.FxhloError | None = None
try:
    fxhlo.lower(Unsupported(), (torch.randn(5),))
except fxhlo.FxhloError as refused:
    problem = refused
assert problem is not None, "a size that depends on data must be refused"
print(problem.message)
print("at:", problem.where)
print("next:", problem.next_step)
assert __file__ in str(problem.where)
