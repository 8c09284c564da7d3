"""torch's private interfaces: in one file, with texts that torch still says and patches that leave nothing behind."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.modules import transformer

from fxhlo.lowering.capture.exporting import capture
from fxhlo.passes import torch_private

ROOT = Path(__file__).parents[2]
ATTRIBUTES = {"_schema", "_overloadname", "_codegen", "_cdata", "_update", "_dispatch_cache", "py_kernels"}


def private_names(source: str) -> list[str]:
    """What of torch's private interfaces a source touches: imports and attributes."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", None) or ""
            names = [f"{module}.{name.name}".strip(".") for name in node.names]
            found += [
                name
                for name in names
                if name.split(".")[0] == "torch"
                and any(part.startswith("_") or part == "experimental" for part in name.split("."))
            ]
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node)
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            of_torch = path.split(".")[0] in ("torch", "fx") and not path.startswith("torch.ops.")
            if node.attr in ATTRIBUTES or (private and of_torch) or path.startswith("torch.fx.experimental"):
                found.append(path)
    return found


def test_the_check_sees_each_kind_of_private_name() -> None:
    assert private_names("from torch._subclasses.fake_tensor import FakeTensorMode")
    assert private_names("from torch.utils import _pytree as pytree")
    assert private_names("from torch.fx.experimental.proxy_tensor import make_fx")
    assert private_names("import torch._dynamo.config")
    assert private_names("isinstance(x, torch._ops.OpOverload)")
    assert private_names("op._schema.is_mutable")
    assert not private_names("torch.ops.aten._unsafe_index.Tensor(x)")


@pytest.mark.parametrize("floor", ["kernels", "passes", "lowering"])
def test_one_file_touches_them(floor: str) -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in (ROOT / floor).rglob("*.py")
        if path.name != "torch_private.py" and (names := private_names(path.read_text()))
    }
    assert not found


# -- texts ------------------------------------------------------------------------------------------------------------


class Opaque:
    """As a cache of transformers: a class without a pytree."""


Opaque.__name__ = Opaque.__qualname__ = "DynamicCache"


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return flex_attention(self.query(x), x, x)


class Forces(torch.nn.Module):
    """A gradient by torch.autograd inside of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x)[0]


class PerSample(torch.nn.Module):
    """The gradients of the weights for each row, by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        def loss(weights: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(self.layer, weights, (row,)).square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(self.layer.named_parameters()), x)


class WritesAView(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x + y


class Takes(torch.nn.Module):
    def forward(self, x: object) -> torch.Tensor:
        return torch.ones(3)


def test_torch_still_says_that_flex_attention_has_no_backward() -> None:
    with pytest.raises(NotImplementedError) as caught:
        torch.export.export(Attention(), (torch.ones(1, 2, 8, 8),), strict=False)
    assert torch_private.NO_FLEX_BACKWARD.is_in(caught.value)


@pytest.mark.parametrize("module", [Forces(), PerSample()], ids=["autograd", "func"])
def test_torch_still_says_that_it_lost_a_tensor(module: torch.nn.Module) -> None:
    with pytest.raises(Exception) as caught:
        torch.export.export(module, (torch.ones(4, 3),), strict=False)
    assert torch_private.LOST_TENSOR.is_in(caught.value)


def test_torch_still_names_the_class_of_an_unregistered_cache() -> None:
    with pytest.raises(Exception) as caught:  # UserError of dynamo
        torch.export.export(Takes(), (Opaque(),), strict=False)
    assert torch_private.UNREGISTERED_CACHE.is_in(caught.value)


def test_torch_still_fails_so_on_an_aliased_mutation() -> None:
    whole = torch.zeros(4)
    exported = torch.export.export(WritesAView(), (whole, whole[:]), strict=False)
    with pytest.raises(AssertionError) as caught:
        exported.run_decompositions()
    assert torch_private.ALIASED_MUTATION.is_in(caught.value)


# -- patches ----------------------------------------------------------------------------------------------------------


def tables() -> list[object]:
    ops = [torch.ops.aten.as_strided.default, torch.ops.aten.upsample_nearest2d.default, torch_private.flex_attention]
    return [
        [dict(op.py_kernels) for op in ops],
        transformer._detect_is_causal_mask,
        set(torch.fx.proxy._STACK_TRACE_ANCHORS),
    ]


def test_captures_in_threads_leave_torch_as_it_was() -> None:
    before = tables()
    x = torch.ones(1, 2, 8, 8)
    modules = [Attention() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        programs = list(pool.map(lambda module: capture(module, (x,)), modules))
    assert all(len(program.results) == 1 for program in programs)
    assert tables() == before


def test_a_patch_is_taken_back_when_what_it_covers_fails() -> None:
    before = tables()
    with (
        pytest.raises(ZeroDivisionError),
        torch_private.causal_mask_detection(lambda *_: True),
        torch_private.user_frames_kept(),
        torch_private.python_kernels_replaced([torch.ops.aten.as_strided.default], {}),
    ):
        raise ZeroDivisionError
    assert tables() == before


def test_a_torch_without_an_interface_is_refused_by_its_name() -> None:
    with pytest.raises(torch_private.TorchVersionError) as caught, torch_private._known_interfaces():
        from torch._subclasses import no_such_name  # noqa: F401
    assert "lacks a private interface" in caught.value.message
    assert "no_such_name" in caught.value.message
    assert caught.value.next_step == "pip install torch==2.13.0"
