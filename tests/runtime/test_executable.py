"""Real compiles of small modules: dtypes, donation, binding, what is refused, and what a call costs."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fxhlo.runtime.core import pjrt, seal
from fxhlo.runtime.core.dtypes import DTYPES, dtype_of
from fxhlo.runtime.core.errors import CompileError, ExecutionError, ShapeError, UnsupportedError
from fxhlo.runtime.core.executable import Executable
from fxhlo.runtime.core.signature import Argument, Result, Signature

ADD = """module @add { func.func public @main(%a: tensor<4xf32>, %b: tensor<4xf32>) -> tensor<4xf32> {
  %0 = stablehlo.add %a, %b : tensor<4xf32>
  return %0 : tensor<4xf32> } }"""
STEP = """module @step { func.func public @main(
    %w: tensor<1024xf32>, %state: tensor<1024xf32> {ALIAS}, %x: tensor<1024xf32>
  ) -> (tensor<1024xf32>, tensor<1024xf32>) {
  %0 = stablehlo.multiply %w, %x : tensor<1024xf32>
  %1 = stablehlo.add %state, %0 : tensor<1024xf32>
  return %0, %1 : tensor<1024xf32>, tensor<1024xf32> } }"""


def module(given, result, body, values):
    """A module from its arguments ("%a: type"), result types, operations and the values that it returns."""
    types = ", ".join(result)
    head = f"module @m {{ func.func public @main({', '.join(given)}) -> ({types}) {{"
    return f"{head}\n{body}\nreturn {', '.join(values)} : {types} }} }}"


def same(type_):
    return module([f"%a: {type_}"], [type_], "", ["%a"])


def dot(left, right, type_):
    return f"stablehlo.dot_general {left}, {right}, contracting_dims = [1] x [0] : ({type_}, {type_}) -> {type_}\n"


DONATED = "tf.aliasing_output = 1 : i32"


def vector(value=1.0, size=1024):
    return np.full(size, value, np.float32)


def aligned(array):
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    made = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


@pytest.fixture(scope="module")
def add():
    four = [Argument(name, "input", (4,), "float32") for name in "ab"]
    return Executable(pjrt.compile(ADD), Signature(tuple(four), (Result("y", (4,), "float32"),)))


def make_step(donated=True, weight_alias=False):
    alias = 1 if donated else None
    arguments = (
        Argument("w", "weight", (1024,), "float32"),
        Argument("state", "buffer" if weight_alias else "state", (1024,), "float32", alias),
        Argument("x", "input", (1024,), "float32"),
    )
    results = (Result("y", (1024,), "float32"), Result("state", (1024,), "float32", 1 if donated else None))
    text = STEP.replace("{ALIAS}", f"{{{DONATED}}}" if donated else "")
    return Executable(pjrt.compile(text), Signature(arguments, results))


@pytest.fixture(scope="module")
def step():
    return make_step()


# -- values in, values out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), ()])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_passes_through_unchanged(dtype, shape):
    full = f"tensor<{''.join(f'{size}x' for size in shape)}{DTYPES[dtype].stablehlo}>"
    text = same(full)
    signature = Signature((Argument("a", "input", shape, dtype),), (Result("a", shape, dtype),))
    values = (np.arange(15) % 7).reshape(3, 5).astype(dtype_of(dtype))
    values = values if shape == (3, 5) else np.ones(shape, dtype_of(dtype))
    (result,) = Executable(pjrt.compile(text), signature)(values)
    assert (result.dtype, result.shape) == (values.dtype, shape)
    assert pjrt.get(result).tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "bool", "int64", "float64", "uint8"])
def test_torch_tensors_in_and_out(torch, dtype):
    text = same(f"tensor<2x3x{DTYPES[dtype].stablehlo}>")
    signature = Signature((Argument("a", "input", (2, 3), dtype),), (Result("a", (2, 3), dtype),))
    executable = Executable(pjrt.compile(text), signature)
    values = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    for tensor in (values.to(getattr(torch, dtype)), values.t().contiguous().t().to(getattr(torch, dtype))):
        (result,) = executable(tensor)
        expected = tensor.to(torch.float64).numpy()
        np.testing.assert_array_equal(np.asarray(result).astype(np.float64), expected)
        assert torch.equal(torch.from_dlpack(result).double(), tensor.double())


def test_tensors_with_strides_gradients_and_offsets(torch, add):
    base = torch.arange(16.0, requires_grad=True)
    (result,) = add(base.reshape(4, 4)[:, 1], base[4:8])
    np.testing.assert_array_equal(pjrt.get(result), [5, 10, 15, 20])
    (result,) = add(np.arange(16, dtype=np.float32)[::4], np.arange(4, dtype=np.float32)[::-1])
    np.testing.assert_array_equal(pjrt.get(result), [3, 6, 9, 12])


def test_inputs_may_be_overwritten_at_once():
    size = 1 << 20
    executable = Executable(
        pjrt.compile(ADD.replace("4xf32", f"{size}xf32")),
        Signature(
            tuple(Argument(name, "input", (size,), "float32") for name in "ab"), (Result("y", (size,), "float32"),)
        ),
    )
    one, two = aligned(vector(1, size)), aligned(vector(2, size))
    (result,) = executable(one, two)
    one[:], two[:] = 100, 100
    assert pjrt.get(result).min() == pjrt.get(result).max() == 3


def test_results_are_not_waited_for():
    type_ = "tensor<1024x1024xf32>"
    dots = "".join(f"%{index + 1} = " + dot(f"%{index or 'a'}", "%a", type_) for index in range(20))
    text = module([f"%a: {type_}"], [type_], dots, ["%20"])
    loaded = pjrt.compile(text)
    one = pjrt.put(np.zeros((1024, 1024), np.float32))
    loaded.execute([one])[0].block_until_ready()
    (result,) = loaded.execute([one])
    assert not result.is_ready()
    result.block_until_ready()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int32", 7), ("float32", 7), ("float32", 0.5), ("bfloat16", 0.5), ("bool", True), ("uint8", 255)],
)
def test_python_numbers(dtype, value):
    text = same(f"tensor<{DTYPES[dtype].stablehlo}>")
    executable = Executable(
        pjrt.compile(text), Signature((Argument("a", "input", (), dtype),), (Result("a", (), dtype),))
    )
    (result,) = executable(value)
    assert pjrt.get(result) == value


def test_python_numbers_that_do_not_fit():
    text = same("tensor<i8>")
    executable = Executable(
        pjrt.compile(text), Signature((Argument("a", "input", (), "int8"),), (Result("a", (), "int8"),))
    )
    for value in (0.5, True, 300, 1j):
        with pytest.raises(ShapeError, match=r"input a takes int8\[\], and got"):
            executable(value)
    with pytest.raises(ShapeError, match=r"got float64\[\]"):
        executable(np.float64(3))


# -- donation ----------------------------------------------------------------------------------------------------------


def test_donated_state_keeps_its_memory_and_is_consumed(step):
    state, *_ = step.zeros()
    assert pjrt.get(state).sum() == 0
    state, *_ = step.zeros()  # a view was taken of the first one
    weight, x = pjrt.put(vector(2)), pjrt.put(vector(3))
    pointers = {state.unsafe_buffer_pointer()}
    for _ in range(3):
        old = state
        _, state = step.execute([weight, state, x])
        assert old.is_deleted()
        pointers.add(state.unsafe_buffer_pointer())
    assert len(pointers) == 1
    assert pjrt.get(state)[0] == 18
    assert step.memory.aliased == 4096
    with pytest.raises(ShapeError, match=r"argument 1 \(float32\[1024\]\) was consumed by an earlier call"):
        step.execute([weight, old, x])
    with pytest.raises(ShapeError, match="state state got a buffer that an earlier call consumed"):
        step(weight, old, x)


def test_without_donation_memory_is_new():
    plain = make_step(donated=False)
    state = pjrt.put(vector(0))
    _, new = plain.execute([pjrt.put(vector(2)), state, pjrt.put(vector(3))])
    assert not state.is_deleted()
    assert new.unsafe_buffer_pointer() != state.unsafe_buffer_pointer()
    assert plain.memory.aliased == 0


def test_a_loaded_executable_donates_too(step):
    loaded = Executable(pjrt.deserialize(step.serialize()), step.signature)
    state = loaded.zeros()[0]
    pointer = state.unsafe_buffer_pointer()
    _, new = loaded.execute([pjrt.put(vector(2)), state, pjrt.put(vector(3))])
    assert (new.unsafe_buffer_pointer(), pjrt.get(new)[0], loaded.memory.aliased) == (pointer, 6, 4096)


def test_host_arrays_are_never_consumed(step):
    host = aligned(vector(1))
    for _ in range(2):
        _, state = step(vector(2), host, vector(3))
        assert pjrt.get(state)[0] == 7
    assert (host == 1).all()


@pytest.mark.parametrize("read", [np.asarray, np.from_dlpack])
def test_views_never_change_under_their_owner(step, read):
    _, state = step(vector(2), vector(0), vector(3))
    view = read(state)
    _, new = step(vector(2), state, vector(3))
    assert (float(view[0]), pjrt.get(new)[0]) == (6, 12)


def test_one_buffer_twice_where_it_is_donated(step):
    state = pjrt.put(vector(1))
    with pytest.raises(ShapeError, match="x and state got the same buffer, and state is donated"):
        step(vector(1), state, state)


# -- binding -----------------------------------------------------------------------------------------------------------


def test_bound_weights_share_aligned_host_memory(step):
    weight = aligned(vector(5))
    bound = step.bind({"w": weight})
    assert bound._bound[0].unsafe_buffer_pointer() == weight.ctypes.data
    assert [argument.name for argument in bound.arguments] == ["state", "x"]
    y, _ = bound(vector(0), vector(2))
    assert pjrt.get(y)[0] == 10
    assert [argument.name for argument in step.arguments] == ["w", "state", "x"]


def test_bound_torch_weights_share_memory(torch, step):
    weight = torch.full((1024,), 5.0)
    assert step.bind({"w": weight})._bound[0].unsafe_buffer_pointer() == weight.data_ptr()


def test_device_arrays_are_bound_as_they_are(step):
    weight = pjrt.put(vector(5))
    assert step.bind({"w": weight})._bound[0] is weight


def test_a_bound_buffer_that_the_module_updates():
    counting = make_step(weight_alias=True)
    counter = aligned(vector(0))
    bound = counting.bind({"w": vector(1), "state": counter})
    other = counting.bind({"w": vector(1), "state": counter})
    for expected in (1, 2, 3):
        _, new = bound(vector(1))
        assert np.array(new)[0] == expected
    assert pjrt.get(other(vector(1))[1])[0] == 1
    assert (counter == 0).all()


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({}, "1 weights are missing: w"),
        ({"w": vector(1), "v": vector(1)}, "takes no weights named v"),
        ({"w": vector(1, 8)}, r"weight w takes float32\[1024\], and got float32\[8\]"),
        ({"w": vector(1).astype(np.float64)}, r"weight w takes float32\[1024\], and got float64\[1024\]"),
        ({"w": "text"}, r"weight w takes float32\[1024\], and got str"),
    ],
)
def test_weights_that_are_refused(step, weights, text):
    with pytest.raises(ShapeError, match=text):
        step.bind(weights)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((vector(1, 4),), {}, "takes 2 arguments and got 1; missing: b"),
        ((vector(1, 4),) * 3, {}, "takes 2 arguments and got 3"),
        ((vector(1, 4),), {"c": 1}, "no argument named c"),
        ((vector(1, 4),), {"a": vector(1, 4)}, "got a by position and by name"),
        ((vector(1, 4), vector(1, 5)), {}, r"input b takes float32\[4\], and got float32\[5\]"),
        ((vector(1, 4), np.ones(4, np.int32)), {}, r"and got int32\[4\]\n.*never converts"),
        ((vector(1, 4), np.ones(4, ">f4")), {}, r"and got >f4\[4\]"),
        ((vector(1, 4), [1, 2, 3, 4]), {}, "and got list"),
        ((vector(1, 4), 1.0), {}, r"and got float64\[\]"),
    ],
)
def test_calls_that_are_refused(add, args, kwargs, text):
    with pytest.raises(ShapeError, match=text):
        add(*args, **kwargs)


def test_a_tensor_without_memory_is_refused(torch, add):
    with pytest.raises(ShapeError, match="got a Tensor"):
        add(vector(1, 4), torch.ones(4, device="meta"))


def test_names_work_for_arguments(add):
    (result,) = add(b=vector(1, 4), a=vector(2, 4))
    assert pjrt.get(result)[0] == 3


def test_what_the_serving_path_says_when_it_fails(add):
    with pytest.raises(ShapeError, match="argument 1 is ndarray, not a device array"):
        add.execute([pjrt.put(vector(1, 4)), vector(1, 4)])
    with pytest.raises(ExecutionError, match="supplied 1 arguments but compiled program expected 2"):
        add.execute([pjrt.put(vector(1, 4))])


def test_modules_that_do_not_compile():
    with pytest.raises(CompileError, match="'nonsense' is unknown") as caught:
        pjrt.compile("module @m { nonsense }")
    assert Path(caught.value.where).read_text() == "module @m { nonsense }"
    Path(caught.value.where).unlink()
    for options, text in (({"xla_nope": 1}, "xla_nope"), ({"xla_cpu_enable_fast_math": "maybe"}, "not a valid bool")):
        with pytest.raises(CompileError, match=text) as caught:
            pjrt.compile(ADD, options=options)
        assert "correct the name or the value" in str(caught.value)
        Path(caught.value.where).unlink()
    unknown = ADD.replace(
        "stablehlo.add %a, %b : tensor<4xf32>", "stablehlo.custom_call @nobody(%a) : (tensor<4xf32>) -> tensor<4xf32>"
    )
    with pytest.raises(CompileError, match="nobody") as caught:
        pjrt.compile(unknown)
    Path(caught.value.where).unlink()
    with pytest.raises(CompileError, match="does not load here"):
        pjrt.deserialize(b"no executable")


def test_options_reach_xla():
    text = ADD.replace("stablehlo.add", "stablehlo.divide")
    for options in (
        {"xla_cpu_enable_fast_math": "true"},
        {"xla_backend_optimization_level": 0},
        {"optimization_level": 1},
    ):
        (result,) = pjrt.compile(text, options=options).execute([pjrt.put(vector(1, 4)), pjrt.put(vector(2, 4))])
        assert pjrt.get(result)[0] == 0.5


def test_devices_that_are_not_there():
    with pytest.raises(UnsupportedError, match="no CUDA plugin"):
        pjrt.device("cuda")
    with pytest.raises(UnsupportedError, match="no cpu device 99"):
        pjrt.device("cpu", 99)
    with pytest.raises(UnsupportedError, match="cpu is compiled on a machine that has one"):
        pjrt.compile_ahead(ADD, "cpu")


def test_nothing_compiles_behind_the_seal(add):
    with seal.closed("the test is serving"):
        with pytest.raises(seal.SealedError, match="compiling a module after the test is serving"):
            pjrt.compile(ADD)
        (result,) = add(vector(1, 4), pjrt.zeros((4,), "float32"))
    assert pjrt.get(result)[0] == 1


# -- the client --------------------------------------------------------------------------------------------------------


def test_the_cpu_target_starts_no_other_platform():
    code = (
        "from fxhlo.runtime.core import pjrt; import jax\n"
        "pjrt.device('cpu'); print(jax.config.jax_platforms, sorted(jax.extend.backend.backends()))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    ran = subprocess.run(
        [sys.executable, "-c", "import jax.extend.backend\n" + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout == "cpu ['cpu']\n", ran.stderr
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "UnsupportedError: this process has no cpu device" in ran.stderr


def test_compiling_releases_the_interpreter():
    type_ = "tensor<64x64xf32>"
    body = "".join(
        f"%d{index} = "
        + dot(f"%e{index - 1}" if index else "%a", "%a", type_)
        + f"%e{index} = stablehlo.tanh %d{index} : {type_}\n"
        for index in range(300)
    )
    text = module([f"%a: {type_}"], [type_], body, ["%e299"])
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    pjrt.compile(text)
    end = time.perf_counter()
    done.set()
    thread.join()
    inside = [moment for moment in ticks if start < moment < end]
    assert max(np.diff([start, *inside, end])) < 0.5 * (end - start)


def test_the_cost_of_a_call(capsys):
    weights, states = 310, 40
    arguments = [Argument(f"a{index}", "weight", (64,), "float32") for index in range(weights)]
    arguments += [Argument(f"s{index}", "state", (8, 64), "float32", index) for index in range(states)]
    results = [Result(f"s{index}", (8, 64), "float32", weights + index) for index in range(states)]
    given = [f"%a{index}: tensor<64xf32>" for index in range(weights)]
    given += [f"%s{index}: tensor<8x64xf32> {{tf.aliasing_output = {index} : i32}}" for index in range(states)]
    body = "".join(
        f"%b{index} = stablehlo.broadcast_in_dim %a{index}, dims = [1] : (tensor<64xf32>) -> tensor<8x64xf32>\n"
        f"%r{index} = stablehlo.add %s{index}, %b{index} : tensor<8x64xf32>\n"
        for index in range(states)
    )
    text = module(given, ["tensor<8x64xf32>"] * states, body, [f"%r{index}" for index in range(states)])
    executable = Executable(pjrt.compile(text), Signature(tuple(arguments), tuple(results)))
    bound = executable.bind({f"a{index}": vector(1, 64) for index in range(weights)})
    current, times = bound.zeros(), []
    for _ in range(200):
        start = time.perf_counter()
        current = bound.execute(current)
        times.append(time.perf_counter() - start)
        current[-1].block_until_ready()
    assert pjrt.get(current[0])[0, 0] == 200
    with capsys.disabled():
        print(f"\n350 arguments, 40 results: {np.median(times) * 1e6:.0f} us a call, least {min(times) * 1e6:.0f} us")
    assert np.median(times) < 1e-3
