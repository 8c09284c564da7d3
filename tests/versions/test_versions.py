"""Bundles between versions of Python and jaxlib, both ways: `make versions` sets up the other environment (docs/versions.md)."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jaxlib
import numpy as np
import pytest
import torch

import fxhlo
from fxhlo.lowering.bundling import save
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.bundle import load

ROOT = Path(__file__).parents[2]
OTHER = Path(os.environ.get("FXHLO_OTHER_PYTHON") or ROOT / ".venv-newest" / "bin" / "python").absolute()
pytestmark = pytest.mark.skipif(not OTHER.exists(), reason="there is no other environment: make versions")
CUSTOM_CALLS = {"fxhlo_linear", "fxhlo_rms_norm", "fxhlo_silu_and_mul"}


class Layers(torch.nn.Module):
    """Native kernels, CHLO's erf, a buffer that is updated, bfloat16, integers and a sort."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(32, 16).bfloat16()
        self.up = torch.nn.Parameter(torch.randn(64, 16).bfloat16())
        self.down = torch.nn.Linear(32, 8)
        self.norm = torch.nn.Parameter(torch.rand(16).bfloat16())
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, ids):
        self.calls.add_(1)
        hidden = torch.ops.fxhlo.rms_norm(self.embed(ids), self.norm, 1e-6)
        gated = torch.ops.fxhlo.silu_and_mul(torch.ops.fxhlo.linear(hidden, self.up, None))
        scores = torch.nn.functional.gelu(self.down(gated.float()))
        return scores.sort(dim=-1, descending=True)


class Numeric(torch.nn.Module):
    """Loops of linear algebra, complex numbers, convolution, scatter."""

    def forward(self, matrix, image, index):
        spectrum = torch.fft.rfft(matrix).abs()
        scattered = torch.zeros(6, 6).index_add(0, index, matrix[: index.shape[0]])
        return (
            torch.linalg.cholesky(matrix @ matrix.mT + torch.eye(6)),
            spectrum,
            torch.nn.functional.conv2d(image, image[:1]),
            scattered,
        )


class Reductions(torch.nn.Module):
    """What XLA's CPU library for fusions gets wrong above some sizes, which every compile of ours switches off (targets.FAMILY_OPTIONS)."""

    def forward(self, points, matrix):
        return (
            points.amax(),
            points.amax(1),
            (matrix @ points[:3, :3].mT).amax(0),
            (matrix @ matrix[:3].mT).pow(2).sum(0),
        )


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    points = torch.rand(64, 64)
    points[0, 0] = torch.nan
    return {
        "reductions": (Reductions(), {"points": points, "matrix": torch.randn(40000, 3)}),
        "layers": (Layers(), {"ids": torch.tensor([3, 1, 31, 0])}),
        "numeric": (
            Numeric(), {"matrix": torch.randn(6, 6), "image": torch.randn(2, 3, 8, 8), "index": torch.tensor([5, 0, 2])},
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ours(models, tmp_path_factory):
    """A bundle with executables, written by this environment."""
    path = tmp_path_factory.mktemp("ours") / "bundle"
    lowered = {name: fxhlo.lower(module, (), inputs) for name, (module, inputs) in models.items()}
    bundle = save(path, lowered)
    for name in lowered:
        bundle.add_executable(bundle.executable(name))
    assert set(bundle.entries["layers"].builds["cpu"].custom_calls) == CUSTOM_CALLS
    return bundle


@pytest.fixture(scope="module")
def theirs(models, ours, tmp_path_factory):
    """What the other environment made of a copy of our bundle, and the bundle that it wrote."""
    folder = tmp_path_factory.mktemp("theirs")
    copy = shutil.copytree(ours.path, folder / "ours")
    for name, (_, inputs) in models.items():
        np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in inputs.items()})
    out = folder / "out"
    out.mkdir()
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "JAX_PLATFORMS": "cpu"}
    command = [str(OTHER), str(Path(__file__).with_name("other_version.py")), str(copy), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return out, json.loads((out / "facts.json").read_text()), load(copy)


def expected(models, name):
    module, inputs = models[name]
    with torch.no_grad():
        results = module(**inputs)
    return [result.numpy() for result in results]


def check(results, models, name):
    wanted = expected(models, name)
    for got, value in zip(results[-len(wanted) :], wanted, strict=True):  # updated buffers come first
        np.testing.assert_allclose(
            got, value, rtol=2e-2 if name == "layers" else 1e-4, atol=1e-2 if name == "layers" else 1e-4
        )


def test_the_other_version_is_another(theirs):
    made = theirs[1]["made"]
    assert made["jaxlib"] != jaxlib.__version__
    assert theirs[1]["torch"] is False


@pytest.mark.parametrize("name", ["layers", "numeric", "reductions"])
def test_our_bundle_runs_there(models, theirs, name):
    out, facts, _ = theirs
    there = facts["made"]["jaxlib"]
    assert facts["native"] is None
    assert f"the stored executable is for jaxlib {jaxlib.__version__} (here {there})" in facts["origins"][name]
    with np.load(out / f"{name}.npz") as results:
        check([results[key] for key in results], models, name)


@pytest.mark.parametrize("name", ["layers", "numeric", "reductions"])
def test_what_was_compiled_there_is_stored_and_taken_there_and_compiled_anew_here(models, theirs, name):
    _, facts, bundle = theirs
    assert facts["origins"][f"{name}, stored"] == "stored executable"
    assert f"is for jaxlib {facts['made']['jaxlib']} (here {jaxlib.__version__})" in bundle[name].origin
    check([pjrt.get(result) for result in bundle[name](**models[name][1])], models, name)


@pytest.mark.parametrize("name", ["layers", "numeric", "reductions"])
def test_their_bundle_runs_here(models, theirs, name):
    out, facts, _ = theirs
    bundle = load(out / "again")
    bundle.verify()
    assert bundle.manifest.made["jaxlib"] == facts["made"]["jaxlib"]
    assert (
        f"compiled from the legalized module: the stored executable is for jaxlib {facts['made']['jaxlib']}"
        in bundle[name].origin
    )
    check([pjrt.get(result) for result in bundle[name](**models[name][1])], models, name)
    portable = pjrt.compile(
        (bundle.path / bundle.entries[name].module.file).read_bytes()
    )  # the references of its composites
    assert portable.text
