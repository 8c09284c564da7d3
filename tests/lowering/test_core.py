"""Core ATen: every overload that torch tags `core` has a rule, is taken apart, or stands with its reason among what is left out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fxhlo.lowering.decompositions.table import decompositions
from fxhlo.lowering.left_out import reasons
from fxhlo.lowering.registry import overload_name, rules
from fxhlo.passes.contract import SILENT
from fxhlo.passes.fx.random_key import DISTRIBUTIONS

BY_CAPTURE = {
    "aten.atan2.out": "a call with out= becomes atan2 and a copy",
    "aten.resize_.default": "becomes aten.resize",
    "aten._native_batch_norm_legit.default": "becomes _native_batch_norm_legit_functional",
    "aten.sym_storage_offset.default": "a number, bound at emission",
    "aten.sym_size.int": "a number, bound at emission",
    "aten.sym_stride.int": "a number, bound at emission",
    "aten.sym_numel.default": "a number, bound at emission",
    "aten.sym_is_contiguous.default": "a number, bound at emission",
}
"""What never reaches emission: the capture makes something else of it."""


def core() -> Iterator[str]:
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        namespace, _, rest = name.partition("::")
        op, _, overload = rest.partition(".")
        packet = getattr(getattr(torch.ops, namespace), op, None) if namespace == "aten" else None
        found = getattr(packet, overload or "default", None)
        if found is not None and torch.Tag.core in found.tags:
            yield overload_name(found)


@pytest.fixture(scope="module")
def known() -> set[str]:
    taken_apart = {overload_name(op) for op in decompositions()}
    drawn = {overload_name(op) for op in DISTRIBUTIONS}
    return {*rules(), *taken_apart, *drawn, *SILENT, *reasons(), *BY_CAPTURE}


@pytest.mark.parametrize("overload", core())
def test_core_aten_is_covered(overload: str, known: set[str]) -> None:
    assert overload in known, f"{overload}: write a rule (docs/add_an_op.md) or its reason in lowering/left_out.py"


def test_there_are_as_many_as_torch_says() -> None:
    assert len(list(core())) > 180


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("aten.atan2.out", lambda x, y: torch.atan2(x, y, out=y) + x),
        ("aten.resize_.default", lambda x, y: x.clone().resize_(2, 3) + 1),
        ("aten._native_batch_norm_legit.default", lambda x, y: torch.nn.functional.batch_norm(x, None, None, training=True)),
        ("aten.sym_size.int", lambda x, y: x * x.shape[0] + x.stride(0) + x.numel()),
    ],
)  # fmt: skip
def test_what_the_capture_makes_of_the_others(name: str, function: object) -> None:
    from differential import check

    assert name in BY_CAPTURE
    check(function, torch.randn(3, 4), torch.randn(3, 4))
