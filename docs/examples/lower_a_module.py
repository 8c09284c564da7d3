"""Lowers a torch module, runs it, saves a bundle, and runs the bundle in a process that never imports torch."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import fxhlo


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(16, 32)
        self.norm = torch.nn.LayerNorm(32)
        self.out = torch.nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(torch.nn.functional.gelu(self.hidden(x)))).softmax(-1)


torch.manual_seed(0)
module, x = Classifier().eval(), torch.ones(8, 16)
hlo = fxhlo.lower(module, (x,))
print(hlo.signature)

(probabilities,) = hlo.compile()(x)
torch.testing.assert_close(torch.from_dlpack(probabilities), module(x).detach())

with tempfile.TemporaryDirectory() as folder:
    hlo.save(Path(folder) / "bundle")
    program = """
import sys
import fxhlo, numpy
(probabilities,) = fxhlo.load("bundle")["main"](numpy.ones((8, 16), numpy.float32))
assert "torch" not in sys.modules
print(numpy.asarray(probabilities)[0])
"""
    subprocess.run([sys.executable, "-P", "-c", program], check=True, cwd=folder)
