"""Mutation is never dropped: what a model changes in place becomes a result that aliases its argument, over several calls."""

from __future__ import annotations

import copy

import pytest
import torch

from fxhlo.lowering.errors import CaptureError
from fxhlo.lowering.lower import lower
from fxhlo.lowering.lowered import as_numpy

from .differential import check, clone, compiled, lowered


def stepped(module: torch.nn.Module, calls: list[tuple], state: set[str]) -> None:
    """Runs several calls in eager torch and compiled, feeding updated arguments back; results and state stay equal."""
    reference = copy.deepcopy(module)
    hlo = lower(module, clone(calls[0]))
    assert {
        hlo.signature.arguments[result.alias].name for result in hlo.signature.results if result.alias is not None
    } == state
    run = compiled(hlo)
    arrays = {name: array.copy() for name, array in hlo.arrays().items()}
    for call in calls:
        inputs = dict(zip([a.name for a in hlo.signature.arguments if a.kind == "input"], call, strict=True))
        values = [arrays[a.name] if a.name in arrays else as_numpy(inputs[a.name]) for a in hlo.signature.arguments]
        outputs = run(values)
        call = clone(call)
        expected = reference(*call)
        expected = list(expected) if isinstance(expected, tuple) else [expected]
        for result, output in zip(hlo.signature.results, outputs, strict=True):
            if result.alias is None:
                torch.testing.assert_close(torch.from_numpy(output.copy()), expected.pop(0))
                continue
            name = hlo.signature.arguments[result.alias].name
            if name in arrays:
                arrays[name] = output
                torch.testing.assert_close(torch.from_numpy(output.copy()), dict(reference.named_buffers())[name])
            else:
                torch.testing.assert_close(torch.from_numpy(output.copy()), call[list(inputs).index(name)])
        assert not expected


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x):
        self.count += 1
        self.total.add_(x)
        return self.total / self.count


class Cache(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(4, 3))

    def forward(self, x, at):
        self.cache[at] = x
        self.cache[:, 0].mul_(2)
        return self.cache.sum(0)


class Norm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x)


class Shared(torch.nn.Module):
    """One buffer under two names, changed through both of them."""

    def __init__(self, how):
        super().__init__()
        self.register_buffer("one", torch.ones(3))
        if how == "an attribute":
            self.other = self.one
        else:
            self.register_buffer("other", self.one[:] if how == "a view" else self.one)

    def forward(self, x):
        self.one.add_(x)
        before = self.other * 2
        self.other.mul_(0.5)
        return before, self.one + 1


class Assigned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x):
        before = self.last.clone()
        self.last = x * 2
        return before + x


def xs(*shape: int, count: int = 3) -> list[tuple]:
    return [(torch.randn(shape),) for _ in range(count)]


def test_buffers_that_add_up():
    stepped(Counter(), xs(3), {"count", "total"})


def test_a_cache_written_at_an_index_and_through_a_view():
    stepped(Cache(), [(torch.randn(3), torch.tensor([at])) for at in (0, 2, -1, 2)], {"cache"})


def test_batch_norm_in_training():
    stepped(Norm().train(), xs(5, 3), {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"})


def test_batch_norm_in_evaluation_changes_nothing():
    stepped(Norm().eval(), xs(5, 3), set())


def test_a_buffer_that_is_assigned():
    stepped(Assigned(), xs(3), {"last"})


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, y: x.add_(y), id="an input"),
        pytest.param(lambda x, y: (x.mul_(y), y.copy_(x)), id="two inputs, one from the other"),
        pytest.param(lambda x, y: x[1:].add_(y[0]).sum(), id="a slice"),
        pytest.param(lambda x, y: x.t()[0].zero_().sum(), id="a view of a view"),
        pytest.param(lambda x, y: x.view(-1)[::2].fill_(7.0) + 1, id="a strided view"),
        pytest.param(lambda x, y: x.diagonal().copy_(y[0]) * 2, id="the diagonal"),
        pytest.param(lambda x, y: x.index_put_((torch.tensor([0, -1]),), y[:2]), id="index_put_"),
        pytest.param(lambda x, y: (x.__setitem__((slice(None), 1), 5.0), x * 1)[1], id="x[:, 1] = 5"),
        pytest.param(lambda x, y: (x.__setitem__(y > 0, 0.0), x * 1)[1], id="x[mask] = 0"),
        pytest.param(lambda x, y: x.masked_fill_(y > 0, -1.0).exp_(), id="a chain"),
        pytest.param(lambda x, y: torch.add(x, y, out=y) + x, id="out="),
        pytest.param(lambda x, y: [part.add_(1) for part in x.unbind(0)][0], id="the parts of unbind"),
        pytest.param(lambda x, y: x.unsqueeze(0).expand(2, 3, 3).sum() + x.squeeze_().neg_().sum(), id="squeeze_"),
        pytest.param(lambda x, y: x.clone().add_(y) + x, id="only a copy"),
        pytest.param(lambda x, y: (x.add_(1), x, x.view(9)), id="the input and its view as results"),
        pytest.param(lambda x, y: x.scatter_add_(0, torch.zeros(3, 3, dtype=torch.long), y), id="scatter_add_"),
        pytest.param(lambda x, y: x.narrow(1, 1, 2).clamp_(min=0).sum(), id="narrow"),
    ],
)
def test_inputs_changed_in_place(function):
    check(function, torch.randn(3, 3), torch.randn(3, 3))


def test_the_updated_argument_is_aliased_in_the_module():
    hlo = lower(Counter(), (torch.randn(3),))
    assert str(hlo.module).count("tf.aliasing_output") == 2
    by_name = {argument.name: argument for argument in hlo.signature.arguments}
    assert hlo.signature.results[by_name["total"].alias].alias == hlo.signature.arguments.index(by_name["total"])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("how", ["an attribute", "a buffer", "a view"])
def test_one_buffer_under_two_names_is_one(how, strict):
    model = Shared(how)
    hlo = lower(torch.export.export(model, (torch.randn(3),), strict=strict))
    assert [argument.kind for argument in hlo.signature.arguments] == ["buffer", "input"]
    run = hlo.compile()
    for _ in range(3):
        x = torch.randn(3)
        torch.testing.assert_close([torch.from_dlpack(result) for result in run(x)[-2:]], list(model(x)))


def test_buffers_that_are_one_stay_apart_where_nothing_is_written():
    class Read(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("one", torch.ones(3))
            self.register_buffer("other", self.one)

        def forward(self, x):
            return x + self.one * self.other

    hlo = lower(Read(), (torch.randn(3),))
    assert [argument.name for argument in hlo.signature.arguments] == ["one", "other", "x"]


def test_a_buffer_that_is_a_part_of_another_is_refused_where_it_is_written():
    """torch's own decomposition does not take it; the error says what to do."""

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("one", torch.ones(3))
            self.register_buffer("part", self.one[1:])

        def forward(self, x):
            self.one.add_(x)
            return self.part * 2

    with pytest.raises(CaptureError, match="torch could not decompose") as caught:
        lower(Part(), (torch.randn(3),))
    assert "take the part in forward" in caught.value.next_step


def replaces(x):
    x.set_(x[1:])
    return x + 1


def replaces_what_was_written(x):
    x.add_(1).set_(x.t())
    return torch.zeros(2)


def transposes_in_place(x):
    x.t_()
    return x + 1


def assigns_data(x):
    x.data = x[1:]
    return x + 1


@pytest.mark.parametrize("function", [replaces, replaces_what_was_written, transposes_in_place, assigns_data])
def test_a_tensor_of_the_caller_that_gets_other_memory_is_refused(function):
    """torch's decomposition drops a set_ and an assigned .data without a word."""
    with pytest.raises(CaptureError, match=r"other memory or another shape|\.data is assigned") as caught:
        lowered(function, (torch.randn(3, 4),))
    assert "test_mutation.py" in caught.value.where and "out of place" in caught.value.next_step


def test_a_tensor_of_the_models_own_may_get_other_memory():
    def function(x):
        y, z = x * 2, x * 3
        y.set_(x[1:])
        z.t_().unsqueeze_(0)
        return y + 1, z

    check(function, torch.randn(3, 4))
