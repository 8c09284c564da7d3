"""Cycles of our paged attention beside the kernel in jax's wheel, as libtpu's static profile of TPU v6e has them.

Comes in: nothing but libtpu; no TPU is needed. Goes out: a row per shape. The compiler counts the cycles of straight-line code, of
loops with a known trip count, and of stalls; it guesses data-dependent trip counts. So both kernels are compiled with their
data-dependent loops fixed to one request and a number of blocks of keys, and every branch taken, each in a process of its
own. The figure is the marginal cost of blocks: the difference between two counts, for 1,024 keys. It excludes a request's
prologue and epilogue. Copies take the time of the compiler's model; the memory's own time for the same keys is given beside.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ...runtime.core.targets import Target

TARGET = "tpu-v6e"
CLOCK = 1.75e9
"""v6e's clock in Hz, to convert the memory's time to cycles."""
CONTEXT = 2048
"""Capacity of the block tables, in keys."""
KEYS = 1024
"""Number of keys that a figure is for."""


@dataclass(frozen=True)
class Shape:
    """rows: of a request (1: decode). page: tokens."""

    name: str
    rows: int
    heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    page: int = 16
    cache: str = "bfloat16"


SHAPES = (
    Shape("decode, 32 heads on 8, pages of 16", 1),
    Shape("decode, 32 heads on 8, pages of 128", 1, page=128),
    Shape("decode, 64 heads on 8, pages of 64", 1, heads=64, page=64),
    Shape("decode, 8 heads on 1, pages of 64", 1, heads=8, kv_heads=1, page=64),
    Shape("decode, 32 heads on 32, pages of 64", 1, kv_heads=32, page=64),
    Shape("64 rows, 32 heads on 8, pages of 16", 64),
    Shape("64 rows, 32 heads on 8, pages of 128", 64, page=128),
    Shape("64 rows, 8 heads on 1, pages of 64", 64, heads=8, kv_heads=1, page=64),
)
ALONE = (
    Shape("decode, 32 heads of 64 on 8, pages of 16", 1, head_size=64),
    Shape("decode, 32 heads of 256 on 8, pages of 16", 1, head_size=256),
    Shape("decode, 32 heads on 8, float8 cache", 1, cache="float8_e4m3fn", page=32),
)
"""Shapes that the wheel's kernel does not support."""


@dataclass(frozen=True)
class Cycles:
    """Cycles of KEYS keys for the shape's rows; None, with the reason, where the kernel does not compile. memory: cycles to
    load these keys."""

    shape: str
    ours: float | None
    peer: float | None
    memory: float
    why: str = ""


def measure(say: Callable[[str], None]) -> list[Cycles]:
    found = []
    for shape in (*SHAPES, *ALONE):
        say(f"attention-tpu: {shape.name}")
        ours, why = _cycles(shape, "ours")
        peer, refused = (None, "not taken") if shape in ALONE else _cycles(shape, "peer")
        moved = KEYS * 2 * shape.kv_heads * shape.head_size * (2 if shape.cache == "bfloat16" else 1)
        memory = moved / (Target.parse(TARGET).bandwidth or 1) * CLOCK
        found.append(Cycles(shape.name, ours, peer, memory, why or refused))
    return found


def table(rows: list[Cycles]) -> Table:
    made = Table(
        "one request", "fxhlo", "jax's wheel", "times better", "memory's bound",
        title=f"Paged attention, {TARGET}: cycles for {KEYS:,} more keys by libtpu's static profile",
    )  # fmt: skip
    for row in rows:
        ratio = f"{row.peer / row.ours:.2f}" if row.ours and row.peer else row.why
        made.add_row(
            row.shape, *(f"{each:,.0f}" if each else "-" for each in (row.ours, row.peer)), ratio, f"{row.memory:,.0f}"
        )
    return made


def _cycles(shape: Shape, which: str) -> tuple[float | None, str]:
    """Cycles for KEYS further keys and all rows, or why there are none."""
    try:
        (two, keys, rows), (four, _, _) = (_estimate(shape, which, count) for count in (2, 4))
    except RuntimeError as problem:
        return None, str(problem)
    return (four - two) / 2 * KEYS / keys * -(-shape.rows // rows), ""


def _estimate(shape: Shape, which: str, blocks: int) -> tuple[float, int, int]:
    """The compiler's cycles for one tile of rows and so many blocks; keys of a block; rows of a tile."""
    with tempfile.TemporaryDirectory() as folder:
        request = json.dumps({"shape": asdict(shape), "which": which, "blocks": blocks})
        flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} --xla_jf_dump_static_llo_profile_to={folder}"
        done = subprocess.run(
            [sys.executable, "-P", "-m", __spec__.name, request], env=os.environ | {"LIBTPU_INIT_ARGS": flags},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        files = sorted(
            Path(folder).glob("name.*_static_llo_profile.textproto")
        )  # Mosaic's calls; the cache's write is first
        if done.returncode or not files:
            wrong = re.search(r"(?:Error|failed): .*", done.stderr)
            raise RuntimeError(wrong[0][:200] if wrong else f"exit {done.returncode}, {len(files)} profiles")
        cycles = re.search(r"estimated_cycles: (\d+)", files[-1].read_text())
        sizes = json.loads(done.stdout.strip().splitlines()[-1])
        return float(cycles[1]) if cycles else 0.0, sizes["keys"], sizes["rows"]


class _Straight:
    """Replaces `pl` or `lax` in a kernel's module: takes every branch, and gives data-dependent loops `counts` in order."""

    def __init__(self, module: Any, *counts: int) -> None:
        self.module, self.counts = module, list(counts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def when(self, condition: object) -> Callable[[Callable[[], None]], None]:
        return lambda act: act()

    def loop(self, first: Any, end: Any) -> Any:
        return self.module.loop(0, end if isinstance(end, int) else self.counts[0])

    def while_loop(self, condition: Any, body: Callable[[Any], Any], start: Any) -> Any:
        count = self.counts.pop(0)
        return self.module.fori_loop(0, count, lambda _, state: body(state), start)


def straight_loops(modules: Sequence[Any], pl: Any, pages: int) -> None:
    """Makes the modules of a kernel on kernels/paged_attention's loop take every branch and read so many pages a block, in this process.

    No rows are copied: libtpu's model of copies does not know all of their directions.
    """
    from ...kernels.paged_attention.tpu_copies import Copies

    for module in modules:
        module.pl = _Straight(pl, pages)
    Copies.each_part = lambda *_: None  # type: ignore[method-assign]


def _ours(shape: Shape, blocks: int, operands: dict[str, Any]) -> tuple[Callable[..., object], int, int]:
    import jax
    from jax.experimental import pallas as pl

    from ...kernels.paged_attention import tpu, tpu_attend, tpu_copies, tpu_softmax
    from ...kernels.paged_attention.tuning import blocks_for
    from ...kernels.spec import TensorSpec

    target = Target.parse(TARGET)
    specs = [TensorSpec(operands[name].shape, operands[name].dtype) for name in ("query", "kv_cache")]
    sizes = blocks_for(*specs, operands["block_tables"].shape[1], target)
    if sizes is None:
        raise RuntimeError("refused")
    keys, chunk = sizes.keys, sizes.chunk
    tile = sizes.tile if shape.rows > 1 else 1

    class Straight(tpu_attend.Loop):
        def run(self) -> None:
            place = tpu_attend.Place(*[self.refs.lengths[0] * 0] * 5)
            span = self.batch.span(place.request, place.tile)
            self.copies.fetch_tile(place)
            self.copies.fetch_pages(place)
            softmax: Any = self.softmax
            softmax.begin(place, tile)

            def block(number: Any, place: Any) -> Any:
                following = place._replace(block=place.block + 1, pages_at=1 - place.pages_at)
                self.copies.fetch_pages(following)
                self.copies.whole_block(place).wait()
                for at in range(0, keys, chunk):
                    softmax.chunk(place.pages_at, at, number * keys + at - span.position, span.position, tile)
                return following

            softmax.finish(jax.lax.fori_loop(0, blocks, block, place), span, tile)

    straight_loops((tpu_attend, tpu_copies, tpu_softmax), pl, keys // shape.page)
    tpu_attend.Loop = Straight  # type: ignore[misc]
    tpu.write = lambda new, kv_cache, slot_mapping: kv_cache  # the wheel's kernel writes nothing

    def call(**operands: Any) -> Any:
        return tpu.lower(**operands, scale=shape.head_size**-0.5, sliding_window=0, soft_cap=0.0, target=target)

    return call, keys, tile


def _peer(shape: Shape, blocks: int, operands: dict[str, Any]) -> tuple[Callable[..., Any], int, int]:
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import tuned_block_sizes as tuned

    tuned.get_tpu_version, tuned.get_device_name = lambda: 6, lambda *_: "TPU v6"
    pages, rows = tuned.get_tuned_block_sizes(
        jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.bfloat16), shape.heads, shape.kv_heads, shape.head_size, shape.page,
        512, CONTEXT // shape.page,
    )  # fmt: skip
    rows = min(rows, 32)
    kernel.pl, kernel.lax = _Straight(pl), _Straight(jax.lax, 1, blocks)  # type: ignore[assignment]

    def call(**operands: Any) -> Any:
        return kernel.ragged_paged_attention(
            operands["query"], operands["kv_cache"], operands["seq_lens"], operands["block_tables"],
            operands["query_start_loc"], operands["seq_lens"][:1], sm_scale=shape.head_size**-0.5,
            num_kv_pages_per_block=pages, num_queries_per_block=rows, vmem_limit_bytes=96 * 2**20,
        )  # fmt: skip

    return call, pages * shape.page, rows if shape.rows > 1 else 1


def _child(request: dict[str, Any]) -> None:
    """Compiles one kernel for v6e; libtpu writes its profile."""
    from ...kernels.paged_attention.cases import specs
    from ...kernels.spec import Implementation, Operands
    from ...passes.hlo.implementation import lower_implementation
    from ...runtime.core import pjrt

    shape, blocks = Shape(**request["shape"]), request["blocks"]
    requests = 32 if shape.rows == 1 else 1
    tokens = 32 if request["which"] == "peer" or shape.rows == 1 else shape.rows  # one tile of either kernel
    operands = specs(
        tokens, shape.heads, shape.kv_heads, shape.head_size, shape.page, requests,
        CONTEXT // shape.page, cache=shape.cache,
    )  # fmt: skip
    call, keys, rows = (_ours if request["which"] == "ours" else _peer)(shape, blocks, operands)
    named = Operands.of(operands, operands.values())
    pjrt.compile_ahead(
        lower_implementation(Implementation("tpu", "pallas", call), named, {}, Target.parse(TARGET)), TARGET
    )
    sys.stdout.write(json.dumps({"keys": keys, "rows": rows}) + "\n")


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
