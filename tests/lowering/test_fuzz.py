"""Random calls of every family: shapes with sizes of 0 and 1, dtypes, dims from either end, memory formats, special numbers.

Hypothesis draws some calls of overloads that go into one module, so that an example costs one compilation. What eager torch
refuses is no example.
"""

# ruff: noqa: E501  (tables of draws)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from overloads import Call, check_calls

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SPECIAL = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 0.5, 1.5, 2.5, -1.0)
SHAPES = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5]), max_size=4).map(tuple)
FULL = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
Draw = Callable[..., Any]


@st.composite
def tensors(draw: Draw, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], special: bool = True) -> torch.Tensor:
    """A tensor of `shape`, contiguous, transposed, or a strided or expanded part of another one."""
    dtype = draw(st.sampled_from(dtypes))
    layout = draw(st.sampled_from(["plain", "plain", "transposed", "strided", "expanded"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if layout == "transposed":
        order = draw(st.permutations(range(len(shape))))
        memory = [shape[dim] for dim in order]
    elif layout == "strided" and shape:
        memory = [*shape[:-1], 2 * shape[-1]]
    elif layout == "expanded" and shape:
        memory = [1, *shape[1:]]
    else:
        layout, memory = "plain", list(shape)
    if dtype is torch.bool:
        values = torch.rand(memory, generator=generator) > 0.5
    elif dtype.is_floating_point:
        values = torch.randn(memory, generator=generator, dtype=torch.float64) * 3
        if special:
            spots = torch.rand(memory, generator=generator) < 0.2
            numbers = torch.tensor(SPECIAL, dtype=torch.float64)
            values = torch.where(spots, numbers[torch.randint(len(SPECIAL), memory, generator=generator)], values)
    else:
        values = torch.randint(0 if dtype is torch.uint8 else -9, 10, memory, generator=generator)
    values = values.to(dtype)
    if layout == "transposed":
        return values.permute([order.index(dim) for dim in range(len(shape))])
    if layout == "strided":
        return values[..., ::2]
    return values.expand(shape)


def dims(shape: tuple[int, ...]) -> st.SearchStrategy[int]:
    rank = max(len(shape), 1)
    return st.integers(-rank, rank - 1)


ANY = (*FLOATS, *INTEGERS, torch.bool)


@st.composite
def elementwise(draw: Draw) -> Call:
    shape = draw(SHAPES)
    other = tuple(draw(st.sampled_from([size, 1])) for size in shape)[draw(st.integers(0, len(shape))) :]
    if draw(st.booleans()):
        name = draw(
            st.sampled_from(
                [
                    "abs",
                    "neg",
                    "sign",
                    "floor",
                    "round",
                    "trunc",
                    "exp",
                    "sqrt",
                    "tanh",
                    "sigmoid",
                    "isnan",
                    "logical_not",
                    "relu",
                    "frac",
                    "reciprocal",
                ]
            )
        )
        return Call(f"aten.{name}.default", (draw(tensors(shape, ANY)),))
    name = draw(
        st.sampled_from(
            [
                "add.Tensor",
                "sub.Tensor",
                "mul.Tensor",
                "div.Tensor",
                "maximum.default",
                "minimum.default",
                "fmax.default",
                "eq.Tensor",
                "lt.Tensor",
                "ge.Tensor",
                "logical_and.default",
                "bitwise_xor.Tensor",
                "atan2.default",
            ]
        )
    )
    return Call(f"aten.{name}", (draw(tensors(shape, ANY)), draw(tensors(other, ANY))))


@st.composite
def division(draw: Draw) -> Call:
    """By anything but an integer zero, which eager torch refuses."""
    shape = draw(SHAPES)
    dtypes = (*FLOATS[:2], torch.int64, torch.int8)
    left, right = draw(tensors(shape, dtypes)), draw(tensors(shape, dtypes))
    if not right.dtype.is_floating_point:
        right = torch.where(right == 0, 3, right).to(right.dtype)
    name = draw(st.sampled_from(["floor_divide.default", "remainder.Tensor", "fmod.Tensor", "div.Tensor_mode"]))
    kwargs = {"rounding_mode": draw(st.sampled_from([None, "floor", "trunc"]))} if "mode" in name else {}
    return Call(f"aten.{name}", (left, right), kwargs)


@st.composite
def scalars(draw: Draw) -> Call:
    shape = draw(SHAPES)
    number = draw(st.sampled_from([0, 1, -3, 2.5, -0.1, True]))
    name = draw(
        st.sampled_from(
            [
                "add.Scalar",
                "mul.Scalar",
                "rsub.Scalar",
                "gt.Scalar",
                "ne.Scalar",
                "clamp_min.default",
                "clamp_max.default",
                "pow.Tensor_Scalar",
            ]
        )
    )
    return Call(f"aten.{name}", (draw(tensors(shape, (*ANY[:-1],), special=False)).abs(), number))


@st.composite
def reduce(draw: Draw) -> Call:
    shape = draw(SHAPES)
    keep = draw(st.booleans())
    x = draw(tensors(shape, ANY, special=draw(st.booleans())))
    name = draw(
        st.sampled_from(
            [
                "sum.dim_IntList",
                "mean.dim",
                "amax.default",
                "amin.default",
                "any.dims",
                "all.dims",
                "argmax.default",
                "argmin.default",
                "max.dim",
                "min.dim",
                "cumsum.default",
                "logsumexp.default",
                "var.correction",
                "prod.dim_int",
            ]
        )
    )
    if name in ("argmax.default", "argmin.default", "max.dim", "min.dim", "prod.dim_int"):
        return Call(f"aten.{name}", (x, draw(dims(shape)), keep))
    if name == "cumsum.default":
        return Call(f"aten.{name}", (x, draw(dims(shape))))
    over = draw(st.lists(dims(shape), max_size=len(shape), unique_by=lambda dim: dim % max(len(shape), 1)))
    return Call(f"aten.{name}", (x, over), {"keepdim": keep})


@st.composite
def shape(draw: Draw) -> Call:
    sizes = draw(SHAPES)
    x, dim = draw(tensors(sizes, ANY)), draw(dims(sizes))
    number = st.integers(-7, 7)
    calls: dict[str, Callable[[], tuple]] = {
        "permute.default": lambda: (draw(st.permutations(range(len(sizes)))),),
        "transpose.int": lambda: (dim, draw(dims(sizes))),
        "flip.default": lambda: (draw(st.lists(dims(sizes), max_size=1)),),
        "roll.default": lambda: ([draw(number)], draw(st.sampled_from([[], [dim]]))),
        "slice.Tensor": lambda: (dim, draw(st.none() | number), draw(st.none() | number), draw(st.integers(1, 3))),
        "select.int": lambda: (dim, draw(number)),
        "unsqueeze.default": lambda: (draw(dims((*sizes, 1))),),
        "squeeze.dim": lambda: (dim,),
        "repeat.default": lambda: ([draw(st.integers(0, 2)) for _ in range(len(sizes) + draw(st.integers(0, 1)))],),
        "unfold.default": lambda: (dim, draw(st.integers(0, 3)), draw(st.integers(1, 2))),
        "diagonal.default": lambda: (draw(number), dim, draw(dims(sizes))),
        "tril.default": lambda: (draw(number),),
        "constant_pad_nd.default": lambda: (draw(st.lists(st.integers(-1, 2), min_size=2, max_size=2)), 1),
        "view.dtype": lambda: (draw(st.sampled_from([torch.int8, torch.int16, torch.float32, torch.int64])),),
        "split.Tensor": lambda: (draw(st.integers(1, 3)), dim),
        "stack.default": lambda: (dim,),
    }  # fmt: skip
    name = draw(st.sampled_from(sorted(calls)))
    first = [x, draw(tensors(sizes, ANY))] if name == "stack.default" else x
    return Call(f"aten.{name}", (first, *calls[name]()))


@st.composite
def index(draw: Draw) -> Call:
    sizes = draw(FULL)
    dim = draw(dims(sizes))
    size = sizes[dim]
    x = draw(tensors(sizes, (torch.float32, torch.bfloat16, torch.int64, torch.bool)))
    some = torch.tensor(draw(st.lists(st.integers(0, size - 1), max_size=4)), dtype=torch.int64)
    name = draw(
        st.sampled_from(
            [
                "index_select",
                "gather",
                "scatter.value",
                "index.Tensor",
                "index_put",
                "index_fill.int_Scalar",
                "masked_fill.Scalar",
                "slice_scatter",
                "scatter_add",
            ]
        )
    )
    if name == "index_select":
        return Call("aten.index_select.default", (x, dim, some))
    if name == "index_fill.int_Scalar":
        return Call(f"aten.{name}", (x, dim, some, 1))
    if name == "masked_fill.Scalar":
        return Call(f"aten.{name}", (x, draw(tensors(sizes[1:], (torch.bool,))), 1))
    if name == "slice_scatter":
        start, step = draw(st.integers(-5, 5)), draw(st.integers(1, 2))
        source = torch.zeros_like(torch.ops.aten.slice.Tensor(x, dim, start, None, step)).logical_not().to(x.dtype)
        return Call("aten.slice_scatter.default", (x, source, dim, start, None, step))
    if name in ("index.Tensor", "index_put"):
        where = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
        where[draw(st.integers(0, len(where) - 1))] = True
        places = [
            torch.tensor(draw(st.lists(st.integers(-n, n - 1), min_size=2, max_size=2))) if chosen else None
            for n, chosen in zip(sizes, where, strict=True)
        ]
        while places[-1] is None:
            places.pop()
        if name == "index.Tensor":
            return Call("aten.index.Tensor", (x, places))
        return Call("aten.index_put.default", (x, places, torch.ones((), dtype=x.dtype)))
    smaller = tuple(draw(st.integers(0, n)) for n in sizes)
    places = torch.randint(0, size, smaller, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    if name == "gather":
        return Call("aten.gather.default", (x, dim, places))
    if name == "scatter.value":
        return Call("aten.scatter.value", (x, dim, places, 1))
    x = (
        x.to(torch.int64) if not x.dtype.is_floating_point else torch.zeros_like(x, dtype=torch.int64)
    )  # floats are added up in no promised order
    return Call("aten.scatter_add.default", (x, dim, places, torch.ones(smaller, dtype=x.dtype)))


@st.composite
def matmul(draw: Draw) -> Call:
    b, m, k, n = (draw(st.sampled_from([0, 1, 2, 5])) for _ in range(4))
    dtypes = (draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64])),)
    one = lambda *sizes: draw(tensors(sizes, dtypes, special=False))  # noqa: E731
    name = draw(st.sampled_from(["mm", "bmm", "addmm", "mv", "dot"]))
    operands = {
        "mm": lambda: (one(m, k), one(k, n)), "bmm": lambda: (one(b, m, k), one(b, k, n)), "addmm": lambda: (one(n), one(m, k), one(k, n)),
        "mv": lambda: (one(m, k), one(k)), "dot": lambda: (one(k), one(k)),
    }[name]()  # fmt: skip
    return Call(
        f"aten.{name}.default", operands, tolerances={"rtol": 2e-2, "atol": 1e-2} if dtypes[0] is torch.bfloat16 else {}
    )


@st.composite
def norm(draw: Draw) -> Call:
    sizes = draw(FULL)
    x = draw(tensors(sizes, FLOATS[:3], special=draw(st.booleans())))
    loose = {"rtol": 2e-2, "atol": 1e-2} if x.dtype.itemsize == 2 else {}
    if draw(st.booleans()):
        return Call(
            f"aten.{draw(st.sampled_from(['_softmax', '_log_softmax']))}.default",
            (x, draw(dims(sizes)), False),
            tolerances=loose,
        )
    last = list(sizes[-draw(st.integers(1, len(sizes))) :])
    return Call(
        "aten.native_layer_norm.default",
        (x, last, None, None, 1e-5),
        seen=lambda result, *_: result,
        tolerances={"rtol": 1e-4, "atol": 1e-3, **loose},
    )


@st.composite
def sort(draw: Draw) -> Call:
    sizes = draw(SHAPES)
    x, dim = draw(tensors(sizes, ANY)), draw(dims(sizes))
    name = draw(st.sampled_from(["sort.stable", "topk.default", "kthvalue.default", "cummax.default", "median.dim"]))
    if name == "sort.stable":
        return Call("aten.sort.stable", (x,), {"stable": True, "dim": dim, "descending": draw(st.booleans())})
    if name in ("topk.default", "kthvalue.default"):  # of equal elements torch promises no place
        return Call(f"aten.{name}", (x, draw(st.integers(1, 3)), dim), seen=lambda values, indices: values)
    return Call(f"aten.{name}", (x, dim), seen=lambda values, indices: values)


def in_float32(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *others: Any) -> torch.Tensor:
    """A convolution whose sums are float32: eager torch's are bfloat16 on a processor without AVX-512."""
    return torch.ops.aten.convolution.default(x.float(), weight.float(), bias.float(), *others).to(x.dtype)


@st.composite
def windows(draw: Draw) -> Call:
    """Pools and convolutions over one or two dimensions."""
    pooled = draw(st.booleans())
    rank = 2 if pooled else draw(st.integers(1, 2))
    sizes = (draw(st.integers(1, 2)), 2, *(draw(st.integers(3, 7)) for _ in range(rank)))
    amounts = lambda low, high: [draw(st.integers(low, high)) for _ in range(rank)]  # noqa: E731
    dtype = draw(st.sampled_from(FLOATS[:2]))
    loose = {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.bfloat16 else {}
    x = draw(tensors(sizes, (dtype,), special=False))
    if not pooled:
        groups, transposed = draw(st.integers(1, 2)), draw(st.booleans())
        stride = amounts(1, 2)
        extra = [draw(st.integers(0, step - 1)) if transposed else 0 for step in stride]
        weight = draw(tensors((2, 2 // groups, *amounts(1, 3)), (dtype,), special=False))
        bias = draw(tensors((2 if not transposed else 2 // groups * groups,), (dtype,), special=False))
        return Call(
            "aten.convolution.default",
            (x, weight, bias, stride, amounts(0, 1), amounts(1, 2), transposed, extra, groups),
            tolerances=loose,
            reference=in_float32 if dtype is torch.bfloat16 else None,
        )
    if draw(st.booleans()):
        return Call(
            "aten.max_pool2d_with_indices.default",
            (x, amounts(2, 3), amounts(1, 2), amounts(0, 1), [1, 1], draw(st.booleans())),
        )
    return Call(
        "aten.avg_pool2d.default",
        (x, amounts(2, 3), amounts(1, 2), amounts(0, 1), draw(st.booleans()), draw(st.booleans())),
        tolerances=loose,
    )


@st.composite
def create(draw: Draw) -> Call:
    sizes = list(draw(SHAPES))
    dtype = draw(st.sampled_from(ANY))
    number = st.integers(-5, 9)
    calls: dict[str, Callable[[], tuple]] = {
        "full.default": lambda: (sizes, draw(number)), "zeros.default": lambda: (sizes,), "ones.default": lambda: (sizes,),
        "arange.start_step": lambda: (draw(number), draw(number), draw(st.sampled_from([1, 2, -1, 0.5] if dtype.is_floating_point else [1, 2, -1]))), "eye.m": lambda: (draw(st.integers(0, 4)), draw(st.integers(0, 4))),
        "linspace.default": lambda: (draw(number), draw(number), draw(st.integers(0, 6))), "_to_copy.default": lambda: (draw(tensors(tuple(sizes), (*FLOATS, torch.int64), special=False)).abs(),),
        "full_like.default": lambda: (draw(tensors(tuple(sizes), ANY)), draw(number)),
    }  # fmt: skip
    name = draw(st.sampled_from(sorted(calls)))
    return Call(f"aten.{name}", calls[name](), {"dtype": dtype})


FAMILIES = {
    function.__name__: function
    for function in (elementwise, division, scalars, reduce, shape, index, matmul, norm, sort, windows, create)
}
EXAMPLES, CALLS = 4, 12


@pytest.mark.parametrize("family", FAMILIES)
def test_random_calls(family: str) -> None:
    _fuzz(family, EXAMPLES)


@pytest.mark.conformance
@pytest.mark.parametrize("family", FAMILIES)
def test_many_random_calls(family: str) -> None:
    _fuzz(family, 100)


def _fuzz(family: str, examples: int) -> None:
    """Not shrunk: a failure names the calls that differ, and each compilation counts."""
    ran = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(st.lists(FAMILIES[family](), min_size=CALLS, max_size=CALLS))
    def drawn(calls: list[Call]) -> None:
        calls = [call for call in calls if call.works()]
        assume(calls)
        check_calls(calls)
        nonlocal ran
        ran += len(calls)

    drawn()
    assert ran >= examples * CALLS // 4, f"only {ran} calls could be compared"
