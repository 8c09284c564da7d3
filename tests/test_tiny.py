"""The whole path on a tiny module, in well under a minute: lower, compile, call, save, load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import fxhlo


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int32))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return torch.relu(self.linear(values)).sum(-1)


def test_lower_compile_call() -> None:
    module, values = Counter(), torch.randn(3, 4)
    lowered = fxhlo.lower(
        module,
        (values,),
        dynamic_shapes={"values": {0: torch.export.Dim("batch", min=2, max=64)}},
        bindings={"batch": 3},
    )
    assert "stablehlo.dot_general" in lowered.text
    assert [argument.kind for argument in lowered.signature.arguments] == ["weight", "weight", "buffer", "input"]
    executable = lowered.compile()
    for call in (1, 2):
        (output,) = executable(values)
        assert int(executable.bound["calls"]) == call
        torch.testing.assert_close(torch.from_dlpack(output), module(values).detach())


def test_save_and_load_without_torch(tmp_path: Path) -> None:
    module, values = Counter(), torch.randn(3, 4)
    fxhlo.lower(module, (values,)).save(tmp_path / "bundle")
    np.save(tmp_path / "values.npy", values.numpy())
    code = (
        "import sys, numpy as np, fxhlo\n"
        f"bundle = fxhlo.load({str(tmp_path / 'bundle')!r})\n"
        f"(output,) = bundle['main'](np.load({str(tmp_path / 'values.npy')!r}))\n"
        f"np.save({str(tmp_path / 'output.npy')!r}, np.asarray(output))\n"
        "assert 'torch' not in sys.modules and 'vllm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "output.npy"), module(values).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_dir_lists_what_the_package_has() -> None:
    assert dir(fxhlo) == sorted(fxhlo.__all__)
    assert all(getattr(fxhlo, name) is not None for name in dir(fxhlo))
