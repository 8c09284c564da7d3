"""torch's own database of modules beside eager torch: what torch.nn has, in training and in evaluation, with torch's samples.

A few (FAST) are in `make test`, the others in `make conformance`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from differential import agree, clone, eager, execute
from torch.testing._internal.common_modules import ModuleInfo, module_db

import fxhlo

RANDOM = ("Dropout", "RReLU", "FractionalMaxPool", "Transformer")
"""Words in the names of modules that draw numbers; where they do, dtypes and shapes are compared, not values."""
REFUSED = {
    "BatchNorm1d/simple_average",
    "BatchNorm2d/simple_average",
    "BatchNorm3d/simple_average",
}  # read a number from a buffer
FAST = ("BatchNorm2d", "FractionalMaxPool3d", "LSTMCell", "MultiLabelMarginLoss", "MultiMarginLoss")


def name_of(info: ModuleInfo) -> str:
    return info.name.removeprefix("nn.").replace(".", "_")


INFOS = {name_of(info): info for info in module_db if torch.float32 in info.dtypes}
CASES = [
    pytest.param(name, training, marks=() if name in FAST else pytest.mark.conformance)
    for name, info in INFOS.items()
    for training in ((True, False) if info.train_and_eval_differ else (False,))
]


def samples(info: ModuleInfo, training: bool) -> Iterator[tuple[str, torch.nn.Module, tuple[Any, ...], dict[str, Any]]]:
    torch.manual_seed(0)
    options = {"device": "cpu", "dtype": torch.float32, "requires_grad": False, "training": training}
    for sample in info.module_inputs_func(info, **options):
        module = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs).to(torch.float32)
        module.train(training)
        args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
        if "Lazy" in info.name:
            module(*args, **kwargs)
        yield sample.desc, module, args, kwargs


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without gradients eager torch takes its encoders' fast path, which gives zeros for padding, where with them, and in
    torch.export, it computes them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize(("name", "training"), CASES)
def test_a_module_computes_what_eager_torch_does(name: str, training: bool) -> None:
    for desc, module, args, kwargs in samples(INFOS[name], training):
        sample = f"{name}/{desc.removeprefix('affine_').removeprefix('2d_').removeprefix('3d_')}"
        if sample in REFUSED and training:
            with pytest.raises(fxhlo.FxhloError, match="data-dependent"):
                fxhlo.lower(module, args, kwargs)
            continue
        hlo = fxhlo.lower(copy.deepcopy(module), clone(args), clone(kwargs))
        with _plain_attention():
            expected = eager(module, args, kwargs)
        actual = execute(hlo, args, kwargs)
        if any(word in name for word in RANDOM) and (
            training or name in ("FractionalMaxPool2d", "FractionalMaxPool3d")
        ):
            assert [(one.shape, one.dtype) for one in actual.results] == [
                (one.shape, one.dtype) for one in expected.results
            ]
        else:
            agree(expected, actual, rtol=1e-4, atol=1e-5)
