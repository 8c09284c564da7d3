"""Mutation is never dropped: what a model changes in place becomes a result that aliases its argument, over several calls."""

from __future__ import annotations

import copy

import pytest
import torch

from fxhlo.lowering.errors import CaptureError
from fxhlo.lowering.lower import lower
from fxhlo.lowering.lowered import as_numpy

from .differential import agree, check, clone, compiled, eager, execute, lowered


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


def assigns_data_of_the_same_shape(x):
    x.data = x * 2
    return x + 1


def assigns_data_of_its_own(x):
    y = x * 2
    view = y[1:]
    with torch.no_grad():
        y.data = y + 5
    return y + 1, view


@pytest.mark.parametrize(
    "function",
    [
        replaces,
        replaces_what_was_written,
        transposes_in_place,
        assigns_data,
        assigns_data_of_the_same_shape,
        assigns_data_of_its_own,
    ],
)
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


class Weighted(torch.nn.Module):
    """forward(x) is function(self, x), with a weight, a buffer and a linear layer at hand."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.randn(3, 3) * 3)
        self.register_buffer("table", torch.randn(3, 3))
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.function(self, x)


def limits_a_norm(self, x):
    self.linear.weight.data = torch.renorm(self.linear.weight.data, 2, 0, 0.3)
    return self.linear(x)


def limits_a_norm_twice(self, x):
    for _ in range(2):
        self.linear.weight.data = self.linear.weight.data * 0.5
        x = self.linear(x)
    return x


def assigns_below_vmap(self, x):
    self.weight.data = self.weight.data * 2
    return torch.func.vmap(lambda row: self.weight @ row)(x)


def assigns_a_buffer_without_gradients(self, x):
    with torch.no_grad():
        self.table.data = self.table + x
    return self.table * 2


def writes_to_data(self, x):
    self.weight.data[0] = 0.0
    self.weight.data.mul_(2).clamp_(-1, 1)
    x.data.add_(1)
    self.table.detach().copy_(x)
    return x @ self.weight + self.table


@pytest.mark.parametrize(
    "function",
    [
        limits_a_norm,
        limits_a_norm_twice,
        assigns_below_vmap,
        assigns_a_buffer_without_gradients,
        writes_to_data,
    ],
)
def test_data_of_a_weight_is_assigned(function):
    model = Weighted(function)
    expected, x = copy.deepcopy(model), torch.randn(3, 3)
    hlo = lower(model, (x.clone(),))
    actual = execute(hlo, (x.clone(),))
    agree(eager(expected, (x,)), actual)
    assert [argument.name for argument in hlo.signature.arguments if argument.alias is not None]


def reads_a_view_of_the_old_memory(self, x):
    view = self.table[0]
    self.table.data = self.table + x
    return view, self.table


def reads_a_view_without_gradients(self, x):
    view = self.table[0]
    with torch.no_grad():
        self.table.data = self.table + x
    return view, self.table


def changes_what_was_assigned(self, x):
    y = x * 2
    self.table.data = y
    y.add_(1)
    return self.table * 1


@pytest.mark.parametrize(
    "function", [reads_a_view_of_the_old_memory, reads_a_view_without_gradients, changes_what_was_assigned]
)
def test_data_that_is_read_in_two_ways_is_refused(function):
    with pytest.raises(CaptureError, match=r"its old memory, or what was assigned") as caught:
        lower(Weighted(function), (torch.randn(3, 3),))
    assert "test_mutation.py" in caught.value.where


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda y: y.unfold(0, 2, 2), id="windows that leave the last element out"),
        pytest.param(lambda y: y[1:].unfold(0, 2, 3), id="windows with gaps"),
        pytest.param(lambda y: y.view(7, 1).unfold(0, 3, 3), id="windows of rows"),
        pytest.param(lambda y: y.unfold(0, 2, 3).select(1, 1), id="a part of each window"),
        pytest.param(lambda y: y.unsafe_chunk(3)[2], id="unsafe_chunk"),
        pytest.param(lambda y: y.unsafe_split(3)[1], id="unsafe_split"),
        pytest.param(lambda y: y.as_strided((2, 2), (3, 1), 1), id="as_strided"),
        pytest.param(lambda y: y[:6].unflatten(0, (2, 3)).mT[1:], id="unflatten"),
        pytest.param(lambda y: torch.view_as_complex(y[:6].view(3, 2)).imag, id="imag"),
    ],
)
def test_writes_through_a_view_leave_the_rest(view):
    def function(x):
        y = x * 1
        view(y).add_(100)
        view(x).mul_(3)
        with torch.no_grad():
            view(y).mul_(2)
        return y

    check(function, torch.arange(1.0, 8.0))


@pytest.mark.parametrize(
    "view", [lambda y: y.unfold(0, 2, 1), lambda y: y.as_strided((3, 2), (1, 1)), lambda y: y.unfold(0, 3, 2)[:, 1:]]
)
def test_a_write_to_elements_that_share_memory_is_refused(view):
    def function(x):
        y = x * 1
        view(y).add_(100)
        return y

    with pytest.raises(CaptureError, match="several elements are one number in memory") as caught:
        lowered(function, (torch.arange(7.0),))
    assert "test_mutation.py" in caught.value.where


def test_a_window_that_is_written_may_be_a_result():
    def function(x):
        y = x.clone()
        windows = y.unfold(0, 2, 5)
        windows[0] += 1
        return y, windows

    check(function, torch.randn(10))
