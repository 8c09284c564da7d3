"""Steps of Llama 3.1 8B compiled by libtpu for v5e and v6e, beside the same model lowered by torchax: the compiler's figures.

No TPU is needed and nothing runs, so figures do not depend on this machine. Decode: 64 requests of 1,024 tokens of context;
prefill: one request of 1,024 tokens. Layers are few (the whole model does not fit a v5e's 15.75 GiB in bfloat16); embedding
and head are whole, so the difference between two rows of a table is the layers.

Three programs: vLLM's model as fxhlo serves it (paged cache, sampling, Pallas kernels), and one plain torch decoder (dense
cache, bench/decoder.py) through fxhlo and through torchax. The last two compute the same from the same exported program.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.core import pjrt
from ...runtime.core.errors import FxhloError, OutOfMemoryError
from ...runtime.core.targets import Target
from .decoder import SHAPES, Shape, exported

if TYPE_CHECKING:
    from rich.table import Table

    from ...lowering.module import HloModule

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False,
    "bos_token_id": 128000, "eos_token_id": 128001,
    "rope_scaling": {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip
TARGETS = ("tpu-v5e", "tpu-v6e")
LAYERS = (4, 8)
PAGE = 16
SERVED, OURS, PEER = "fxhlo, vLLM's step", "fxhlo, plain decoder", "torchax, plain decoder"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Figure:
    """One compiled step. Times in seconds: `roofline` of what the model must do, `bound` summed over the compiled ops.

    flops and bytes: of the compiler's cost analysis, with Pallas kernels' own estimates. counted: ours, over the
    optimized HLO, with kernels at their lower bounds. outside: bound over roofline without the kernels.
    None where it did not fit: see `problem`.
    """

    target: str
    step: str
    layers: int
    program: str
    roofline: float | None = None
    bound: float | None = None
    outside: float | None = None
    flops: float | None = None
    bytes: float | None = None
    counted_flops: float | None = None
    counted_bytes: float | None = None
    temporaries: int | None = None
    problem: str = ""


def measure(say: Say, *, fast: bool = False) -> list[Figure]:
    """Compiles everything, one program after the other: minutes."""
    found = []
    for figure in _figures(LAYERS[:1] if fast else LAYERS, say):
        found.append(figure)
        bound = "" if figure.bound is None else f": {figure.bound * 1e6:,.1f} us of {(figure.roofline or 0) * 1e6:,.1f}"
        say(f"  {figure.program}{bound}{figure.problem}")
    return found


def _figures(layers: tuple[int, ...], say: Say) -> Iterator[Figure]:
    for count in layers:
        config = {**CONFIG, "num_hidden_layers": count}
        served = _served(config)
        for shape in SHAPES.values():
            plain = _plain(config, shape)
            peer = _torchax(config, shape, say)
            for target in TARGETS:
                say(f"{count} layers, {shape.name}, {target}")
                least = _roofline(plain, Target.parse(target))
                yield _ours(served[shape.name], target, shape.name, count, SERVED)
                yield _ours(plain, target, shape.name, count, OURS)
                yield _figure(peer, target, shape.name, count, PEER, least)


def _served(config: dict[str, Any]) -> dict[str, HloModule]:
    """Lowers vLLM's model as the engine's step; returns a module per shape, by name."""
    from ...lowering.emit.emit import emit
    from ...passes.pipeline import run
    from ..lower.capture import quiet_vllm

    quiet_vllm()
    from ...runtime.vllm.steps.capture import capture_model

    most = max(shape.requests for shape in SHAPES.values())
    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        program, passes = capture_model(folder, max_model_len=2048, max_num_seqs=most)
    program = run(passes, program)
    return {
        shape.name: emit(
            program,
            {
                "tokens": shape.requests * shape.tokens,
                "requests": shape.requests,
                "num_blocks": shape.requests * shape.context // PAGE,
            },
        )
        for shape in SHAPES.values()
    }


def _plain(config: dict[str, Any], shape: Shape) -> Any:
    from ...lowering.lower import lower

    return lower(exported(config, shape))


def _torchax(config: dict[str, Any], shape: Shape, say: Say) -> bytes:
    """Lowers the same exported program by torchax, in a process that has it on its path."""
    from .peers import PEERS, environment

    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-") as folder:
        out = Path(folder) / "peer.mlirbc"
        command = [sys.executable, "-P", "-m", "fxhlo.tools.bench.tpu", json.dumps(config), shape.name, str(out)]
        done = subprocess.run(command, env=environment(PEERS["torchax"], say), capture_output=True, text=True)
        if done.returncode:
            raise FxhloError(f"torchax did not lower the decoder: {done.stderr.strip().splitlines()[-1]}")
        return out.read_bytes()


def _ours(module: HloModule, target: str, step: str, layers: int, program: str) -> Figure:
    from ...passes import mlir
    from ...passes.hlo.legalize import legalize
    from ..report.report import step_report

    where = Target.parse(target)
    legalized = legalize(mlir.bytecode(module.module), where)
    try:
        compiled = pjrt.compile_ahead(legalized.bytecode, where)
    except OutOfMemoryError as problem:
        return Figure(target, step, layers, program, problem=problem.message)
    total = step_report(step, module, legalized, where, compiled).total
    assert total.bound is not None
    outside = total.outside_bound / total.outside_roofline if total.outside_roofline and total.outside_bound else None
    return Figure(
        target, step, layers, program, total.roofline, total.bound, outside, compiled.costs.get("flops"),
        compiled.costs.get("bytes accessed"), total.compiled_flops, total.compiled_bytes, compiled.memory.temporaries,
    )  # fmt: skip


def _roofline(module: HloModule, target: Target) -> float:
    from ..report.ideal import ideal
    from ..report.report import bound

    return sum(bound(cost, target) for cost in ideal(module.module, module.signature))


def _figure(peer: bytes, target: str, step: str, layers: int, program: str, roofline: float) -> Figure:
    """The peer's figure: it has no kernels, and its roofline is that of the same model."""
    from ..report.hlo import Optimized
    from ..report.report import bound

    where = Target.parse(target)
    try:
        compiled = pjrt.compile_ahead(peer, where)
    except OutOfMemoryError as problem:
        return Figure(target, step, layers, program, problem=problem.message)
    costs = Optimized.parse(compiled.text).costs
    whole = sum(bound(cost, where) for cost in costs)
    return Figure(
        target, step, layers, program, roofline, whole, whole / roofline, compiled.costs.get("flops"),
        compiled.costs.get("bytes accessed"), sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs),
        compiled.memory.temporaries,
    )  # fmt: skip


def _lower_peer(config: str, shape: str, out: str) -> None:
    """In the peer's process: lowers the decoder by torchax and writes a portable artifact."""
    from .peers import lower_by_torchax

    made = lower_by_torchax(exported(json.loads(config), SHAPES[shape]), platforms=("tpu",))
    Path(out).write_bytes(made.mlir_module_serialized)


def tables(figures: list[Figure]) -> list[Table]:
    """A table per target and number of layers."""
    from rich.table import Table

    from ..report.units import Unit

    made = []
    for target, layers in dict.fromkeys((one.target, one.layers) for one in figures):
        mine = [one for one in figures if (one.target, one.layers) == (target, layers)]
        times = Unit.of_seconds(time for one in mine for time in (one.roofline, one.bound))
        flops = Unit.of_flops(one.flops for one in mine)
        traffic = Unit.of_traffic(size for one in mine for size in (one.bytes, one.counted_bytes))
        table = Table(title=f"Llama 3.1 8B, {layers} layers, compiled for {target}", title_justify="left")
        table.add_column("step")
        table.add_column("program")
        for column in (
            f"roofline, {times.name}", f"as compiled, {times.name}", "outside kernels", flops.name, traffic.name,
            f"counted {traffic.name}",
        ):  # fmt: skip
            table.add_column(column, justify="right")
        for one in mine:
            if one.bound is None or one.roofline is None:
                table.add_row(one.step, one.program, one.problem)
                continue
            ratio = "" if one.outside is None else f"{one.outside:.2f}x"
            numbers = (flops(one.flops), traffic(one.bytes), traffic(one.counted_bytes))
            table.add_row(one.step, one.program, times(one.roofline), times(one.bound), ratio, *numbers)
        made.append(table)
    return made


if __name__ == "__main__":
    _lower_peer(*sys.argv[1:])
