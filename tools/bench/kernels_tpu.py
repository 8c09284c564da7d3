"""Latent attention, state space and linear attention on TPU: our Pallas kernels beside XLA's programs for the same composites. No TPU is
needed, nothing is timed.

Comes in: nothing but libtpu. Goes out: a row per kernel, shape, target and program, for one layer's step: of 64 requests with a row each,
or of 1,024 rows of two requests, at the end of contexts of 2,048 tokens.

Cycles are the compiler's. Of XLA's programs: `estimated_cycles` of fusions and copies, loops times the counts that the step gives them. Of
the Pallas kernel over latents: libtpu's static profile of a tile of rows (of 7x, which it does not profile, the bundles of the schedule), per
block of keys, times tiles and blocks. Of the one that
steps states: the bundles of its final schedule. Of a Pallas kernel at least the cycles in which the memory delivers what it reads
and writes; what XLA compiles around it is added.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ...kernels.spec import Case, Implementation, Kernel, Operands
from ...runtime.core.targets import Target
from . import experts_tpu
from .attention_tpu import straight_loops
from .experts_tpu import clock, compile_implementation
from .sampling_tpu import pallas_cycles, xla_cycles

if TYPE_CHECKING:
    from rich.table import Table

TARGETS = ("tpu-v5e", "tpu-v6e", "tpu-7x")
CONTEXT = 2048
DECODE, PREFILL = (64, 64), (1024, 2)
"""(rows, requests) of a step."""
WAYS = {"pallas": "Pallas", "xla": "XLA", "reference": "XLA", "decompressed": "XLA, decompressed"}


@dataclass(frozen=True)
class Shape:
    """A layer of a model and the programs to compile for it. case: by its name in the kernel's cases, for decode and prefill alike."""

    kernel: str
    model: str
    decode: tuple[str, ...] = ("pallas", "xla")
    prefill: tuple[str, ...] = ("xla",)


LATENT = "ragged_paged_latent_attention"
SHAPES = (
    *(Shape(LATENT, model, prefill=("pallas", "xla", "decompressed")) for model in ("DeepSeek-V2-Lite", "DeepSeek-V2, V3")),
    *(Shape(LATENT, model, prefill=()) for model in ("Kimi-K2", "GLM-4.7-Flash", "MiniCPM3")),
    Shape("ragged_gated_delta_rule", "Qwen3-Next"),
    Shape("ragged_gated_delta_rule", "Kimi Linear", prefill=()),
    Shape("ragged_ssd", "Mamba 2 2.7B"),
    Shape("ragged_lightning_attention", "MiniMax-Text-01"),
    Shape("ragged_selective_scan", "Falcon Mamba, Jamba", decode=("xla",)),
    Shape("ragged_causal_conv1d", "Qwen3-Next", decode=("reference",), prefill=("reference",)),
)  # fmt: skip
FAST = ("DeepSeek-V2-Lite",)


@dataclass(frozen=True)
class Row:
    """cycles: of the whole layer's step. bytes: of memory traffic, by XLA's cost analysis, which counts loop bodies once and knows a
    Pallas kernel's only where it says them. temporaries: bytes. seconds: of compilation on this machine."""

    kernel: str
    model: str
    step: str
    target: str
    way: str
    cycles: float = 0.0
    bytes: float = 0.0
    temporaries: int = 0
    seconds: float = 0.0
    refused: str = ""


def rows_to_measure(*, fast: bool = False) -> list[Row]:
    """fast: decode alone, of the models in FAST."""
    return [
        Row(shape.kernel, shape.model, step, target, way)
        for shape in SHAPES
        if not fast or (shape.model in FAST and "pallas" in shape.decode)
        for step, ways in (("decode", shape.decode), ("prefill", () if fast else shape.prefill))
        for target in TARGETS
        for way in ways
    ]


def measure(say: Callable[[str], None], *, fast: bool = False) -> list[Row]:
    found = []
    for row in rows_to_measure(fast=fast):
        say(f"kernels-tpu: {row.kernel}, {row.model}, {row.step}, {row.target}, {WAYS[row.way]}")
        found.append(measured(row))
    return found


def table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    made = Table(
        "kernel", "layer of", "step", "target", "program", "cycles", "times ours", "MB moved", "temporaries MB", "compiled in s",
        title="One layer's step: 64 rows of 64 requests, or 1,024 rows of two, contexts of 2,048 tokens",
    )  # fmt: skip
    ours = {(row.kernel, row.model, row.step, row.target): row.cycles for row in rows if row.way == "pallas"}
    for row in rows:
        mine = ours.get((row.kernel, row.model, row.step, row.target))
        numbers = (
            [row.refused[:60], "", "", "", ""]
            if row.refused
            else [
                f"{row.cycles:,.0f}", f"{row.cycles / mine:.1f}" if mine else "", f"{row.bytes / 1e6:,.0f}",
                f"{row.temporaries / 1e6:,.0f}", f"{row.seconds:.1f}",
            ]
        )  # fmt: skip
        made.add_row(row.kernel, row.model, row.step, row.target, WAYS[row.way], *numbers)
    return made


def tables(rows: Sequence[Row | experts_tpu.Row]) -> list[Table]:
    """Of experts, where they were measured, and of these kernels."""
    experts = [row for row in rows if isinstance(row, experts_tpu.Row)]
    made = [experts_tpu.table(experts)] if experts else []
    return [*made, table([row for row in rows if isinstance(row, Row)])]


def measured(row: Row) -> Row:
    """Compiles in processes of their own, since libtpu reads its flags once; its profiler does not know all that XLA compiles around a
    Pallas kernel, so that the kernel over latents is compiled alone for it."""
    schedules = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
    found = _in_a_process(row, "program", schedules)
    if row.way == "pallas" and row.kernel == LATENT and not found.refused:
        try:
            alone = _in_a_process(row, "profile", f"{schedules} --xla_jf_dump_static_llo_profile_to={{}}")
        except subprocess.CalledProcessError:  # libtpu's profiler ends the process where it does not know a copy
            alone = _in_a_process(row, "profile", schedules)
        return replace(found, cycles=found.cycles + alone.cycles)
    return found


def _in_a_process(row: Row, what: str, flags: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        given = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags.replace('{}', folder)}"
        done = subprocess.run(
            [sys.executable, "-P", "-m", __spec__.name, json.dumps({"row": asdict(row), "folder": folder, "what": what})],
            env=os.environ | {"LIBTPU_INIT_ARGS": given}, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return Row(**json.loads(done.stdout.strip().splitlines()[-1]))


def _child(row: Row, folder: Path) -> Row:
    from ...kernels.catalog import kernels
    from ...runtime.core.errors import FxhloError
    from ..kernel_matrix import compiled

    kernel, target = kernels()[f"fxhlo.{row.kernel}"], Target.parse(row.target)
    case = _case(kernel, row)
    operands = Operands.of(case.operands, case.operands.values())
    implementation = None if row.way == "reference" else _implementation(kernel, row.way)
    if implementation is not None and (refusal := implementation.refusal(operands, case.attributes, target)):
        return replace(row, refused=refusal)
    begun = perf_counter()
    try:
        if implementation is None:
            done = compiled(kernel, case, target)
        else:
            done = compile_implementation(implementation, case.operands, case.attributes, target, _aliases(kernel))
    except FxhloError as problem:
        return replace(row, refused=str(problem).splitlines()[0])
    row = replace(
        row, seconds=perf_counter() - begun, temporaries=done.memory.temporaries, bytes=done.costs["bytes accessed"]
    )
    cycles = xla_cycles(done.text, asked=True, steps=_steps(row))
    if row.way == "pallas" and "state" in case.operands:
        cycles += _step_cycles(case, target, folder)
    return replace(row, cycles=cycles)


def _aliases(kernel: Kernel) -> dict[int, str]:
    """Results that are updated operands, by the operands' names."""
    names = re.findall(r"Tensor\?? (\w+)", kernel.schema.split("*")[0])
    return {result: names[operand] for result, operand in kernel.aliases.items()}


def _case(kernel: Kernel, row: Row) -> Case:
    """The model's case with the rows, requests and contexts of the step."""
    from ...kernels.spec import TensorSpec

    (case,) = (one for one in kernel.cases() if one.name.startswith(row.step) and row.model in one.name)
    tokens, requests = DECODE if row.step == "decode" else PREFILL
    given = case.operands["block_tables" if "block_tables" in case.operands else "state_slots"].shape[0]
    known = case.operands["query_start_loc"].shape[0] - 1
    assert tokens == next(iter(case.operands.values())).shape[0] and known == given
    sizes = {"block_tables": requests, "state_slots": requests, "seq_lens": requests, "query_start_loc": requests + 1}
    changed = {
        name: TensorSpec((sizes[name], *spec.shape[1:]), spec.dtype)
        for name, spec in case.operands.items()
        if name in sizes
    }
    return replace(case, operands={**case.operands, **changed})


def _implementation(kernel: Kernel, way: str) -> Implementation:
    from ...kernels.paged_attention import xla as paged
    from ...kernels.paged_latent_attention import xla as latent

    if way != "pallas":  # one form for all requests, so that loops have one count
        latent.DECOMPRESSED_TILE = 0
    if way == "decompressed":
        paged.QUERY_TILE = DECOMPRESSED_ROWS
        latent.Forms.absorbed = latent.Forms.decompressed  # type: ignore[assignment, method-assign]
        way = "xla"
    (found,) = (one for one in kernel.implementations if one.name == way)
    return found


DECOMPRESSED_ROWS = 512


def _steps(row: Row) -> tuple[int, ...]:
    """How often the loops of XLA's program turn, from the outermost on."""
    tokens, requests = DECODE if row.step == "decode" else PREFILL
    if row.kernel == LATENT:
        blocks = CONTEXT // 128
        tile = DECOMPRESSED_ROWS if row.way == "decompressed" else 64
        return (blocks,) if row.step == "decode" else (requests, tokens // requests // tile, blocks)
    return (1,) if row.step == "decode" else (tokens // 64,)  # tiles of a request's rows


def _profiled(row: Row, folder: Path) -> Row:
    """Cycles of the Pallas kernel over latents: a tile's fixed cost, and that of each block of keys, from programs of two and of four
    blocks."""
    import jax
    from jax.experimental import pallas as pl

    from ...kernels.paged_attention import tpu_attend, tpu_copies
    from ...kernels.paged_attention.tpu_batch import Meaning
    from ...kernels.paged_latent_attention import KERNEL, tpu, tpu_softmax
    from ...kernels.paged_latent_attention.tuning import blocks_for, padded_heads
    from ...kernels.spec import TensorSpec

    operands, target = _case(KERNEL, row).operands, Target.parse(row.target)
    query, cache, tables = (operands[name] for name in ("query", "kv_cache", "block_tables"))
    latent, requests = operands["w_uv"].shape[1], tables.shape[0]
    sizes = blocks_for(query, cache, latent, tables.shape[1], target)
    assert sizes is not None
    keys, chunk = sizes.keys, sizes.chunk
    each = query.shape[0] // requests
    tile = 1 if each == 1 else sizes.tile
    straight_loops((tpu_attend, tpu_copies, tpu_softmax), pl, sizes.keys // cache.shape[1])
    meaning = Meaning(1.0, 0, 0, 0.0, ())
    shape = (query.shape[0], padded_heads(query.shape[1]), cache.shape[2])
    given = {"query": TensorSpec(shape, query.dtype)}
    given |= {name: operands[name] for name in ("kv_cache", "block_tables", "seq_lens", "query_start_loc")}

    def attend(query: Any, kv_cache: Any, block_tables: Any, seq_lens: Any, query_start_loc: Any) -> Any:
        scalars = (block_tables.reshape(-1), seq_lens, query_start_loc)
        return tpu.attend(scalars, query, kv_cache, latent, meaning, sizes, target.cores)

    found = []
    for blocks in (2, 4):

        class Straight(tpu_attend.Loop):
            def run(self, blocks: int = blocks) -> None:
                place = tpu_attend.Place(*[self.refs.lengths[0] * 0] * 5)
                span = self.batch.span(place.request, place.tile)
                self.copies.fetch_pages(place)
                softmax: Any = self.softmax
                softmax.begin(place, tile)

                def block(number: Any, place: Any) -> Any:
                    following = place._replace(block=place.block + 1, pages_at=1 - place.pages_at)
                    self.copies.fetch_pages(following)
                    self.copies.whole_block(place).wait()
                    for at in range(0, keys, chunk):
                        softmax.chunk(place, at, number * keys + at - span.position, tile)
                    return following

                softmax.finish(jax.lax.fori_loop(0, blocks, block, place), span, tile)

        tpu.Loop = Straight  # type: ignore[misc]
        compile_implementation(Implementation("tpu", "pallas", attend, row_major=("kv_cache",)), given, {}, target)
        found.append(_cycles(folder))
    marginal = (found[1] - found[0]) / 2
    size = cache.shape[2] * cache.dtype.itemsize
    memory = sizes.keys * size / (target.bandwidth or 1) * clock(target)
    tiles = requests * -(-each // tile) / target.cores
    return replace(row, cycles=tiles * (found[0] - 2 * marginal + max(marginal, memory) * -(-CONTEXT // sizes.keys)))


def _cycles(folder: Path) -> float:
    """Of the Pallas kernel that was compiled last, by libtpu's profile, which is written anew for each program; where that has none, as of
    7x, the bundles of its schedule."""
    for profile in folder.glob("name.*_static_llo_profile.textproto"):
        cycles = re.search(r"estimated_cycles: ([1-9]\d*)", profile.read_text())
        if cycles:
            return float(cycles[1])
    schedules = sorted(folder.glob("*-name.*-03-final_bundles.txt"), key=lambda path: path.stat().st_mtime)
    found = pallas_cycles(schedules[-1].read_text(), 1, 1)
    if not found:
        raise RuntimeError("libtpu wrote neither a profile nor a schedule")
    return found


def _step_cycles(case: Case, target: Target, folder: Path) -> float:
    """Of the Pallas kernel that steps the state of each request: of one head block, times head blocks and requests."""
    from ...kernels.ragged_ssd.tpu_step import block_of

    state, requests = case.operands["state"], case.operands["state_slots"].shape[0]
    heads = state.shape[1]
    schedules = folder.glob("*-name.*-03-final_bundles.txt")
    bundles = max(pallas_cycles(path.read_text(), 1, requests * (heads // block_of(heads))) for path in schedules)
    size = state.dtype.itemsize
    for length in state.shape[1:]:
        size *= length
    return max(bundles, 2 * requests * size / (target.bandwidth or 1) * clock(target))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    child = {"program": _child, "profile": _profiled}[given["what"]]
    print(json.dumps(asdict(child(Row(**given["row"]), Path(given["folder"])))))
