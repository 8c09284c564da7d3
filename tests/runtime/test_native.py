"""The C++ kernels against plain float64 references, bit for bit across batches, and their build cache."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fxhlo.runtime.core import native
from fxhlo.runtime.core.native import build

REASON = native.unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
SPACING = {BF16: 2.0**-7, F16: 2.0**-10, F32: 2.0**-23}
"""Between a dtype's numbers, relative to the power of two below them."""


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    native.register()


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


# ---- linear --------------------------------------------------------------------------------------------------


def linear(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None, out: np.dtype | None = None) -> np.ndarray:
    result = jax.ShapeDtypeStruct((x.shape[0], w.shape[0]), out or x.dtype)
    if bias is None:
        return np.asarray(jax.jit(jax.ffi.ffi_call("fxhlo_linear", result))(x, w))
    return np.asarray(jax.jit(jax.ffi.ffi_call("fxhlo_linear_bias", result))(x, w, bias))


def matrices(m: int, n: int, k: int, dtype: np.dtype, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return tuple(random.standard_normal(shape).astype(dtype) for shape in ((m, k), (n, k), (n,)))


def check_linear(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, out: np.dtype) -> None:
    exact, size = (
        x.astype(np.float64) @ w.astype(np.float64).T,
        np.abs(x.astype(np.float64)) @ np.abs(w.astype(np.float64)).T,
    )
    if bias is not None:
        exact = exact + bias.astype(np.float64)
    allowed = 0.51 * SPACING[out] * np.abs(exact) + 2.0**-20 * (size + 1)  # rounding, and float32 sums
    got = linear(x, w, bias, out)
    assert got.dtype == out
    assert (np.abs(got.astype(np.float64) - exact) <= allowed).all()


SIZES = [
    (1, 1, 1), (1, 960, 576), (2, 17, 7), (3, 16, 8), (5, 33, 31), (7, 15, 33), (8, 64, 64), (13, 40, 129),
    (33, 100, 200), (130, 70, 1031), (300, 48, 576),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "out"), [(BF16, BF16), (BF16, F32), (F32, F32), (F16, F16), (F16, F32)], ids=str)
def test_linear(size: tuple[int, int, int], dtype: np.dtype, out: np.dtype) -> None:
    x, w, bias = matrices(*size, dtype)
    check_linear(x, w, None, out)
    check_linear(x, w, bias, out)


@pytest.mark.parametrize("size", [(0, 5, 3), (5, 0, 3), (5, 3, 0)], ids=str)
def test_linear_of_nothing(size: tuple[int, int, int]) -> None:
    x, w, bias = matrices(*size, BF16)
    np.testing.assert_array_equal(linear(x, w), np.zeros((size[0], size[1])))
    np.testing.assert_array_equal(linear(x, w, bias), np.broadcast_to(bias, (size[0], size[1])))


@pytest.mark.parametrize("dtype", [BF16, F32, F16], ids=str)
@pytest.mark.parametrize(("n", "k"), [(50, 579), (960, 576), (4000, 40)])
def test_linear_gives_a_row_the_same_bits_in_any_batch(dtype: np.dtype, n: int, k: int) -> None:
    x, w, _ = matrices(403, n, k, dtype)
    whole = linear(x, w)
    for rows in [slice(0, 1), slice(402, 403), slice(5, 12), slice(100, 106), slice(3, 35), slice(0, 200)]:
        np.testing.assert_array_equal(bits(linear(x[rows], w)), bits(whole[rows]))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("used", [0, 1, 7, 200, 403])
def test_linear_leaves_out_rows_that_are_not_used(used: int, with_bias: bool) -> None:
    x, w, bias = matrices(403, 50, 579, BF16)
    x[used:] = np.nan
    result = jax.ShapeDtypeStruct((403, 50), BF16)
    added = bias if with_bias else np.zeros(0, BF16)
    got = np.asarray(jax.jit(jax.ffi.ffi_call("fxhlo_linear_used", result))(x, w, added, np.array([used], np.int32)))
    np.testing.assert_array_equal(bits(got[:used]), bits(linear(x[:used], w, bias if with_bias else None)))
    assert not got[used:].any()


@pytest.mark.parametrize("used", [-1, 4])
def test_linear_refuses_a_number_of_rows_that_it_does_not_have(used: int) -> None:
    x, w, bias = matrices(3, 4, 5, F32)
    call = jax.jit(jax.ffi.ffi_call("fxhlo_linear_used", jax.ShapeDtypeStruct((3, 4), F32)))
    with pytest.raises(Exception, match=f"used is {used}, of 3 rows"):
        jax.block_until_ready(call(x, w, bias, np.array([used], np.int32)))


def test_linear_keeps_infinities_and_nan_in_their_row() -> None:
    x, w, _ = matrices(9, 20, 37, BF16)
    clean = linear(x, w)
    x[4, 36], x[7, 0] = np.nan, np.inf
    got = linear(x, w)
    others = [0, 1, 2, 3, 5, 6, 8]
    np.testing.assert_array_equal(bits(got[others]), bits(clean[others]))
    assert np.isnan(got[4].astype(np.float32)).all()
    assert np.isinf(got[7].astype(np.float32)).all()


def test_linear_says_what_is_wrong() -> None:
    x, w, _ = matrices(2, 3, 4, BF16)
    with pytest.raises(Exception, match=r"weight is float32 \[3, 4\], not bfloat16 \[any, 4\]"):
        linear(x, w.astype(F32))
    with pytest.raises(Exception, match=r"weight is bfloat16 \[3, 3\], not bfloat16 \[any, 4\]"):
        linear(x, w[:, :3].copy())


# ---- attention -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """`lengths` holds, for each request, the rows of this step and the context's length with them."""

    lengths: tuple[tuple[int, int], ...]
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    block_size: int = 16
    dtype: np.dtype = BF16
    window: int = 0
    soft_cap: float = 0.0
    chunk: int = 0
    sinks: bool = False
    alibi: bool = False
    padding: int = 0

    @property
    def scale(self) -> float:
        return self.head_size**-0.5


@dataclass
class Case:
    """The operands of one call, and each request's whole context, from which the cache was filled."""

    batch: Batch
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    cache: np.ndarray
    slots: np.ndarray
    tables: np.ndarray
    seq_lens: np.ndarray
    starts: np.ndarray
    sinks: np.ndarray
    slopes: np.ndarray
    contexts: list[tuple[np.ndarray, np.ndarray]]

    def run(self, donate: bool = False) -> tuple[np.ndarray, np.ndarray]:
        batch = self.batch
        results = (
            jax.ShapeDtypeStruct(self.q.shape, self.q.dtype),
            jax.ShapeDtypeStruct(self.cache.shape, self.cache.dtype),
        )
        call = jax.ffi.ffi_call("fxhlo_ragged_paged_attention", results, input_output_aliases={3: 1} if donate else {})

        def attend(*operands: jax.Array) -> tuple[jax.Array, jax.Array]:
            return call(
                *operands,
                scale=np.float32(batch.scale),
                sliding_window=np.int64(batch.window),
                soft_cap=np.float32(batch.soft_cap),
                chunk=np.int64(batch.chunk),
            )

        operands = [
            self.q,
            self.k,
            self.v,
            self.cache,
            self.slots,
            self.tables,
            self.seq_lens,
            self.starts,
            self.sinks,
            self.slopes,
        ]
        compiled = jax.jit(attend, donate_argnums=(3,) if donate else ())
        out, cache = compiled(*(jnp.array(operand) for operand in operands))
        return np.asarray(out), np.asarray(cache)


def make(batch: Batch, seed: int = 0, garbage: float = np.nan) -> Case:
    """Random contexts, of which all but this step's tokens lie in the cache; every slot in no request holds garbage."""
    random = np.random.default_rng(seed)
    requests = len(batch.lengths)
    pages = max(1, *(-(-length // batch.block_size) for _, length in batch.lengths)) + 1
    blocks = pages * requests + 3
    order = random.permutation(blocks)
    tables = np.zeros((requests, pages), np.int32)
    cache = np.full((blocks, batch.block_size, 2 * batch.kv_heads, batch.head_size), garbage, batch.dtype)
    kv, contexts, rows, slots = (batch.kv_heads, batch.head_size), [], [0], []
    new_keys, new_values, queries = [], [], []
    for request, (count, length) in enumerate(batch.lengths):
        used = -(-length // batch.block_size)
        tables[request, :used] = order[request * pages : request * pages + used]
        keys, values = (random.standard_normal((length, *kv)).astype(batch.dtype) for _ in range(2))
        flat = cache.reshape(-1, 2 * batch.kv_heads, batch.head_size)
        slot = np.array(
            [
                tables[request, at // batch.block_size] * batch.block_size + at % batch.block_size
                for at in range(length)
            ],
            int,
        )
        old = length - count
        flat[slot[:old], 0::2], flat[slot[:old], 1::2] = keys[:old], values[:old]
        contexts.append((keys, values))
        new_keys.append(keys[old:])
        new_values.append(values[old:])
        slots.extend(slot[old:])
        queries.append((2 * random.standard_normal((count, batch.heads, batch.head_size))).astype(batch.dtype))
        rows.append(rows[-1] + count)
    for arrays, heads in ((queries, batch.heads), (new_keys, batch.kv_heads), (new_values, batch.kv_heads)):
        arrays.append(np.full((batch.padding, heads, batch.head_size), garbage, batch.dtype))
    slots.extend([-1, cache.shape[0] * batch.block_size][at % 2] for at in range(batch.padding))
    return Case(
        batch,
        q=np.concatenate(queries),
        k=np.concatenate(new_keys),
        v=np.concatenate(new_values),
        cache=cache,
        slots=np.array(slots, np.int32),
        tables=tables,
        seq_lens=np.array([length for _, length in batch.lengths], np.int32),
        starts=np.array(rows, np.int32),
        sinks=random.standard_normal(batch.heads if batch.sinks else 0).astype(np.float32),
        slopes=np.exp2(-random.uniform(1, 6, batch.heads if batch.alibi else 0)).astype(np.float32),
        contexts=contexts,
    )


def expected(case: Case) -> np.ndarray:
    """Attention row by row and head by head, in float64."""
    batch, out = case.batch, np.zeros(case.q.shape)
    group = batch.heads // batch.kv_heads
    for request, (count, length) in enumerate(batch.lengths):
        keys, values = (context.astype(np.float64) for context in case.contexts[request])
        for row in range(count):
            position, token = length - count + row, case.starts[request] + row
            first = max(0, position - batch.window + 1) if batch.window > 0 else 0
            first = max(first, position // batch.chunk * batch.chunk) if batch.chunk > 0 else first
            seen = np.arange(first, position + 1)
            for head in range(batch.heads):
                scores = keys[seen, head // group] @ case.q[token, head].astype(np.float64) * batch.scale
                if batch.soft_cap > 0:
                    scores = batch.soft_cap * np.tanh(scores / batch.soft_cap)
                if batch.alibi:
                    scores = scores + case.slopes[head] * (seen - position)
                highest = max(scores.max(), case.sinks[head]) if batch.sinks else scores.max()
                weights = np.exp(scores - highest)
                total = weights.sum() + (np.exp(case.sinks[head] - highest) if batch.sinks else 0.0)
                out[token, head] = weights @ values[seen, head // group] / total
    return out


def check_attention(case: Case, donate: bool = False) -> None:
    out, cache = case.run(donate)
    # Weights enter the second product in the cache's dtype where the machine has bfloat16 dot products.
    allowed = {BF16: 2.0**-6, F16: 2.0**-9, F32: 2.0**-18}[case.batch.dtype]
    np.testing.assert_allclose(out.astype(np.float64), expected(case), rtol=allowed, atol=allowed)
    flat = cache.reshape(-1, *cache.shape[2:])
    written = case.cache.reshape(flat.shape).copy()
    for slot, key, value in zip(case.slots, case.k, case.v, strict=True):
        if 0 <= slot < len(written):
            written[slot, 0::2], written[slot, 1::2] = key, value
    np.testing.assert_array_equal(bits(flat), bits(written))


MIXED = ((1, 40), (5, 5), (0, 0), (70, 150), (1, 1), (3, 129), (1, 300))
BATCHES = {
    "mixed": Batch(MIXED, padding=4),
    "decode": Batch(((1, 9), (1, 64), (1, 65), (1, 200)), heads=9, kv_heads=3),
    "prefill": Batch(((100, 100), (33, 33)), heads=9, kv_heads=3),
    "one head": Batch(MIXED, heads=1, kv_heads=1),
    "many heads of one": Batch(((3, 20), (1, 90)), heads=96, kv_heads=1, head_size=128),
    "window": Batch(MIXED, window=37),
    "narrow window": Batch(MIXED, window=1),
    "chunks": Batch(MIXED, chunk=48),
    "chunks of one page": Batch(MIXED, chunk=16, block_size=16),
    "soft cap": Batch(MIXED, soft_cap=2.5),
    "sinks": Batch(MIXED, sinks=True, padding=2),
    "alibi": Batch(MIXED, alibi=True),
    "everything": Batch(MIXED, heads=6, window=50, soft_cap=3.0, sinks=True, alibi=True, padding=1),
    "odd sizes": Batch(MIXED, heads=3, kv_heads=3, head_size=37, block_size=5, padding=3),
    "large head": Batch(((2, 70), (1, 33)), head_size=576, block_size=32, kv_heads=1),
    "small head": Batch(MIXED, head_size=8, block_size=1),
    "large pages": Batch(MIXED, head_size=80, block_size=128, window=100),
}


@pytest.mark.parametrize("dtype", [BF16, F32, F16], ids=str)
@pytest.mark.parametrize("name", BATCHES)
def test_attention(name: str, dtype: np.dtype) -> None:
    check_attention(make(replace(BATCHES[name], dtype=dtype)))


def test_attention_in_place() -> None:
    check_attention(make(BATCHES["mixed"]), donate=True)


def test_attention_of_an_empty_batch() -> None:
    case = make(Batch(((0, 0), (0, 0)), padding=3))
    out, cache = case.run()
    np.testing.assert_array_equal(out, np.zeros(out.shape))
    np.testing.assert_array_equal(bits(cache), bits(case.cache))


VARIANTS = {
    "plain": {},
    "float32": {"dtype": F32},
    "window": {"window": 70},
    "everything": {"window": 50, "soft_cap": 3.0, "sinks": True, "alibi": True},
    "odd": {"head_size": 40, "block_size": 7, "heads": 3, "kv_heads": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_gives_a_row_the_same_bits_alone_in_a_batch_and_in_chunks(variant: str) -> None:
    length = 211
    whole = make(Batch(((17, 90), (length, length), (1, 33)), **VARIANTS[variant]))
    out, cache = whole.run()
    rows = slice(17, 17 + length)
    for edges in [(0, 211), (0, 1, 211), (0, 64, 128, 211), (0, 50, 51, 52, 130, 210, 211)]:
        current, pieces = whole.cache, []
        for begin, end in itertools.pairwise(edges):
            part = slice(17 + begin, 17 + end)
            piece = replace_case(whole, part, current, end)
            result, current = piece.run()
            pieces.append(result)
        np.testing.assert_array_equal(bits(np.concatenate(pieces)), bits(out[rows]), err_msg=str(edges))
    used = whole.slots[rows]
    np.testing.assert_array_equal(
        bits(current.reshape(-1, *current.shape[2:])[used]), bits(cache.reshape(-1, *cache.shape[2:])[used])
    )


def replace_case(whole: Case, rows: slice, cache: np.ndarray, length: int) -> Case:
    """A call with some rows of request 1 alone, its context `length` tokens long."""
    return replace(
        whole,
        q=whole.q[rows],
        k=whole.k[rows],
        v=whole.v[rows],
        slots=whole.slots[rows],
        cache=cache,
        tables=whole.tables[1:2],
        seq_lens=np.array([length], np.int32),
        starts=np.array([0, rows.stop - rows.start], np.int32),
    )


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 3.0])
@pytest.mark.parametrize("name", ["mixed", "window", "odd sizes"])
def test_what_lies_in_unused_slots_never_shows(name: str, garbage: float) -> None:
    clean, _ = make(BATCHES[name], garbage=0.0).run()
    dirty, _ = make(BATCHES[name], garbage=garbage).run()
    np.testing.assert_array_equal(bits(dirty), bits(clean))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_token_does_not_reach_rows_that_do_not_see_it(bad: float) -> None:
    case = make(Batch(((90, 90), (20, 60)), window=30))
    clean, _ = case.run()
    case.k[40], case.v[40] = bad, bad  # position 40 of request 0: seen from 40 to 69
    got, _ = case.run()
    blind = [row for row in range(110) if not 40 <= row < 70]
    np.testing.assert_array_equal(bits(got[blind]), bits(clean[blind]))
    assert np.isnan(got[40:70].astype(np.float32)).all()


def test_pages_below_the_window_may_be_gone() -> None:
    case = make(Batch(((1, 200), (4, 300)), window=40))
    out, _ = case.run()
    case.tables[0, : (200 - 40) // 16] = -1
    case.tables[1, : (296 - 39) // 16] = 10**6
    np.testing.assert_array_equal(bits(case.run()[0]), bits(out))


def broken(case: Case, name: str) -> tuple[Case, str]:
    tables, seq_lens, starts = case.tables.copy(), case.seq_lens.copy(), case.starts.copy()
    blocks = case.cache.shape[0]
    if name == "block":
        tables[1, 2] = blocks
        return replace(
            case, tables=tables
        ), f"request 1: entry 2 of its block table is {blocks}, the cache has {blocks} blocks"
    if name == "negative block":
        tables[0, 0] = -1
        return replace(case, tables=tables), "request 0: entry 0 of its block table is -1"
    if name == "length":
        seq_lens[1] = 10_000
        return replace(case, seq_lens=seq_lens), "request 1: seq_lens is 10000, its block table holds"
    if name == "rows":
        starts[2] = 99
        return replace(case, starts=starts), "request 1: rows 1 to 99 of query_start_loc are not in a batch of 4"
    return replace(case, sinks=np.zeros(3, np.float32)), r"sinks is float32 \[3\], not float32 \[4\]"


@pytest.mark.parametrize("name", ["block", "negative block", "length", "rows", "sinks"])
def test_attention_refuses_what_would_read_wild_memory(name: str) -> None:
    case, message = broken(make(Batch(((1, 20), (3, 40)))), name)
    with pytest.raises(Exception, match=message):
        case.run()


# ---- the build cache -----------------------------------------------------------------------------------------

SCRIPT = """
from fxhlo.runtime.core import native
reason = native.unavailable()
print(reason or native.library())
"""


def start(folder: object, script: str = SCRIPT, **environment: str) -> subprocess.Popen:
    variables = {**os.environ, "FXHLO_CACHE_DIR": str(folder), "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answer(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


@dataclass
class Compiler:
    """A fake compiler that takes half a second, counts the libraries it links and puts out the one that the real compiler made."""

    command: Path
    runs: Path

    def count(self) -> int:
        return len(self.runs.read_text().splitlines()) if self.runs.exists() else 0


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    made = tmp_path / "made.so"
    made.write_bytes(native.library().read_bytes()[: -build.DIGEST_BYTES])
    command, runs = tmp_path / "c++", tmp_path / "runs"
    command.write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then echo stand-in; exit; fi
case "$*" in *-shared*) echo run >> {runs}; sleep 0.5;; esac
while [ "$1" != -o ]; do shift; done
cp {made} "$2"
""")
    command.chmod(0o755)
    return Compiler(command, runs)


PLANNED = """
from fxhlo.runtime.core import native
print(native.planned())
"""


def test_whether_there_will_be_a_library_is_known_without_building_it(tmp_path: Path, compiler: Compiler) -> None:
    folder, command = tmp_path / "cache", str(compiler.command)
    script = """
import importlib
from fxhlo.kernels.catalog import kernels
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core.targets import Target
import numpy as np
spec = TensorSpec((2, 4), np.dtype(np.float32))
for name in ("linear", "silu_and_mul", "sample"):
    (implementation,) = (one for one in kernels()[f"fxhlo.{name}"].implementations if one.name == "native")
    operands = Operands.of(("values", "weight")[: 2 if name == "linear" else 1], (spec,) * (2 if name == "linear" else 1))
    print(implementation.refusal(operands, {}, Target("cpu")))
"""
    assert answer(start(folder, PLANNED, CXX=command)) == "None"
    assert answer(start(folder, script, CXX=command)).split() == ["None"] * 3
    assert compiler.count() == 0
    assert answer(start(folder, CXX=command)).endswith(".so")
    assert compiler.count() == 1


@pytest.fixture
def refusing(tmp_path: Path) -> Compiler:
    """A compiler that cannot compile the sources, until `repaired` is there."""
    command, runs = tmp_path / "refusing", tmp_path / "refusals"
    command.write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then echo refusing; exit; fi
case "$*" in *linear.cc*) echo run >> {runs};; esac
[ -e {tmp_path}/repaired ] && exec {build.find_compiler()[0]} -O0 "$@" -O0
echo "error: no such flag" >&2; exit 1
""")
    command.chmod(0o755)
    return Compiler(command, runs)


@pytest.mark.conformance
def test_a_refused_build_is_not_tried_at_every_start(tmp_path: Path, refusing: Compiler) -> None:
    folder, command = tmp_path / "cache", str(refusing.command)
    assert answer(start(folder, PLANNED, CXX=command)) == "None"
    assert "could not compile the native kernels: error: no such flag" in answer(start(folder, CXX=command))
    for script in (PLANNED, SCRIPT):
        reason = answer(start(folder, script, CXX=command))
        assert "error: no such flag" in reason
        assert "-m fxhlo.runtime.core.native tries again" in reason
    assert refusing.count() == 1
    (tmp_path / "repaired").touch()
    variables = {**os.environ, "FXHLO_CACHE_DIR": str(folder), "CXX": command}
    done = subprocess.run([sys.executable, "-P", "-m", "fxhlo.runtime.core.native"], env=variables)
    assert done.returncode == 0
    assert answer(start(folder, PLANNED, CXX=command)) == "None"
    assert answer(start(folder, CXX=command)).endswith(".so")


@pytest.mark.parametrize(
    "end", ["echo 'c++: fatal error: Killed signal terminated program cc1plus' >&2; exit 1", "kill -9 $$"]
)
def test_a_build_that_somebody_ends_is_tried_again(tmp_path: Path, compiler: Compiler, end: str) -> None:
    folder, command = tmp_path / "cache", tmp_path / "ending"
    command.write_text(f"""#!/bin/sh
[ "$1" = --version ] || [ -e {tmp_path}/ended ] && exec {compiler.command} "$@"
touch {tmp_path}/ended; {end}
""")
    command.chmod(0o755)
    assert "building the native kernels failed" in answer(start(folder, CXX=str(command)))
    assert answer(start(folder, CXX=str(command))).endswith(".so")


def test_where_the_build_fails_a_module_is_compiled_in_stablehlo(tmp_path: Path, refusing: Compiler) -> None:
    script = """
import numpy as np
import fxhlo.jax
x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(2, 6)
module = fxhlo.jax.lower(fxhlo.jax.silu_and_mul, x)
print(module.legalized().custom_calls)
(result,) = module.compile()(x)
print(np.allclose(np.asarray(result), x[:, :3] / (1 + np.exp(-x[:, :3])) * x[:, 3:], atol=1e-6), module.legalized().custom_calls)
"""
    out = answer(start(tmp_path / "cache", script, CXX=str(refusing.command)))
    assert out.splitlines() == ["('fxhlo_silu_and_mul',)", "True ()"]


def test_two_processes_build_at_once_and_later_ones_find_it(tmp_path: Path, compiler: Compiler) -> None:
    folder = tmp_path / "cache"
    both = [start(folder, CXX=str(compiler.command)) for _ in range(2)]
    first, second = (answer(process) for process in both)
    assert first == second
    path = Path(first)
    assert sorted(os.listdir(folder / "native")) == [
        path.with_suffix(".lock").name,
        path.name,
    ]  # nothing temporary stays
    assert compiler.count() == 1
    assert answer(start(folder, CXX=str(compiler.command))) == first
    assert compiler.count() == 1


def test_prepare_builds_beside_a_process_that_is_forked_meanwhile(tmp_path: Path, compiler: Compiler) -> None:
    script = """
import os
from fxhlo.runtime.core import native
native.prepare()
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(native.unavailable() is not None)
print(native.library())
"""
    path = Path(answer(start(tmp_path / "cache", script, CXX=str(compiler.command))))
    assert path.is_file()
    assert compiler.count() == 1


@pytest.mark.parametrize("damage", ["cut short", "one byte"])
def test_a_damaged_library_is_built_again_once(tmp_path: Path, compiler: Compiler, damage: str) -> None:
    folder = tmp_path / "cache"
    path = Path(answer(start(folder, CXX=str(compiler.command))))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"\0" + content[1:])
    assert answer(start(folder, CXX=str(compiler.command))) == str(path)
    assert path.read_bytes() == content
    assert compiler.count() == 2


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": "/nonexistent", "CXX": ""}, "no C++ compiler found on PATH; install g++ or set CXX"),
        (
            {"CXX": "/nonexistent/c++"},
            "no C++ compiler: CXX is '/nonexistent/c++', which cannot be run; set it to one that can",
        ),
        ({"FXHLO_NATIVE": "0"}, "FXHLO_NATIVE=0 switches the native kernels off"),
        ({"CXX": "false"}, "false could not compile the native kernels"),
    ],
    ids=["no compiler", "wrong CXX", "off", "fails"],
)
def test_the_reason_why_there_is_no_library(tmp_path, environment: dict[str, str], reason: str) -> None:
    assert reason in answer(start(tmp_path, **environment))


def test_without_a_library_the_error_carries_the_reason(tmp_path) -> None:
    script = """
from fxhlo.runtime.core import native
from fxhlo.runtime.core.errors import UnsupportedError
try:
    native.register()
except UnsupportedError as error:
    print(error)
"""
    assert "FXHLO_NATIVE=0 switches" in answer(start(tmp_path, script, FXHLO_NATIVE="0"))


def test_importing_compiles_nothing_and_imports_no_jax(tmp_path) -> None:
    script = "import sys; import fxhlo.runtime.core.native; print('jax' in sys.modules)"
    assert answer(start(tmp_path, script)) == "False"
    assert not os.listdir(tmp_path)


def test_every_target_is_in_the_library() -> None:
    import ctypes

    loaded = ctypes.CDLL(str(native.library()))
    assert all(hasattr(loaded, target) for target in native.TARGETS)
