"""Compiles a module for a TPU on a machine without one, and asks libtpu what it needs. Needs the extra `tpu` (libtpu)."""

import torch

import fxhlo


class MLP(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(1024, 4096, bias=False, dtype=torch.bfloat16)
        self.down = torch.nn.Linear(4096, 1024, bias=False, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.silu(self.up(x)))


x = torch.zeros(256, 1024, dtype=torch.bfloat16)
compiled = fxhlo.lower(MLP(), (x,), target="tpu-v6e").compile_ahead()
memory = compiled.memory
print(f"arguments {memory.arguments / 1e6:.1f} MB, temporaries {memory.temporaries / 1e6:.1f} MB")
assert memory.arguments > 16e6
