"""`lower-model`: from a model to its StableHLO on the command line.

    lower-model MODEL [options]      lower it; `check`, `engine`, `inspect`, `plan`, `profile` and `conformance` as the first word are commands of their own
    lower-model check MODEL          every op that has no rule, at once
    lower-model engine MODEL         all programs of the engine that serves it, compiled, and their bundle
    lower-model inspect BUNDLE       what a saved bundle holds
    lower-model plan MODEL           the programs that an engine would have, and their padding
    lower-model profile DIR          where the time of an engine's steps went
    lower-model conformance          kernels and ops on one target: compiled, and right where a device is there

Guaranteed: stdout holds the result and nothing else; progress and errors go to stderr.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import console

HELP = """
Lowers a model to StableHLO and prints it, or writes it with -o.

MODEL is a folder with a config.json, a config.json alone, a .pt2 file of torch.export.save, or a hub id where there is
a network. No weights and no device are needed: the model is captured with fake tensors.

\b
Commands (each has --help; for a folder of that name: ./check, ...):
  lower-model MODEL            lower MODEL: what this page describes
  lower-model check MODEL      every op that has no rule, all at once
  lower-model engine MODEL     all programs of its engine, compiled for a target; -o writes their bundle
  lower-model inspect BUNDLE   entries, signature and sizes of a bundle
  lower-model plan MODEL       the programs that vLLM's engine would have, and their padding
  lower-model profile DIR      where the time of an engine's steps went (FXHLO_PROFILE)
  lower-model conformance      kernels and ops on one target, for the author of a backend
"""
EXAMPLES = (
    """
\b
Examples:
  Read the module of a model that is here, then that of one step of 8 requests:
    lower-model build/models/SmolLM2-135M-Instruct | less
    lower-model config.json --bucket tokens=8,requests=8 -o step.mlir
  See what the target gets, and what its compiler makes of it:
    lower-model config.json --legalized -o legalized.mlir
    lower-model config.json --stop-after compile --explain --timing
    lower-model config.json --optimized -o optimized.hlo
  Ask whether a model fits on a TPU and where its time goes (libtpu compiles; no TPU is needed):
    lower-model config.json --target tpu-v6e --bucket tokens=64,requests=64,num_blocks=4096 --html report.html
  Make a bundle of two programs, and look into it:
    lower-model MODEL --bucket tokens=8 --bucket tokens=512 -o bundle/
    lower-model inspect bundle/
  Find what stands in the way of a model of your own (a .pt2 has no names of dimensions: argument.dimension):
    lower-model check exported.pt2 --import my_ops.py
    lower-model exported.pt2 --bucket x.0=4
  Look at a pass, and change its options:
    lower-model --list-passes
    lower-model MODEL --stop-after passes --print-after paged-attention --pass-option paged-attention.block_size=64
  Give a script the facts:
    lower-model MODEL --stop-after compile --json | jq .modules[0].memory
"""
    + console.EXIT_CODES
)


class Stage(StrEnum):
    """Where to stop; each stage includes the ones before it."""

    CAPTURE = "capture"
    PASSES = "passes"
    HLO = "hlo"
    COMPILE = "compile"


class Dtype(StrEnum):
    """The model's own (auto), or another."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


ModelWord = Annotated[str, typer.Argument(metavar="MODEL", help="folder, config.json, .pt2 or hub id")]
DtypeOption = Annotated[Dtype, typer.Option(help="dtype of weights and activations")]
LengthOption = Annotated[
    int | None, typer.Option(min=1, metavar="TOKENS", help="longest sequence; the model's own if left out")
]
ImportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="import it first: it registers ops, a target or kernels; a name or a .py file; repeatable",
    ),
]
TargetOption = Annotated[str, typer.Option(help="where it will run: cpu, tpu-v6e, tpu-v6e:2x2, ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="the same as JSON, for a script")]


def _app() -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


lower_app, check_app, engine_app, inspect_app, conformance_app, plan_app, profile_app = (_app() for _ in range(7))


@lower_app.command(help=HELP, epilog=EXAMPLES, no_args_is_help=True)
def lower(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="folder, config.json, .pt2 or hub id")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR",
            help="write there: .mlir text, .mlirbc portable bytecode, a folder: a bundle",
        ),
    ] = None,
    stop_after: Annotated[Stage, typer.Option(help="stage to stop after")] = Stage.HLO,
    bucket: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N[,NAME=N]",
            help="sizes of the symbolic dimensions, as tokens=64,requests=8; those of the engine's largest step if left "
            "out; repeatable",
        ),
    ] = None,
    target: TargetOption = "cpu",
    dtype: DtypeOption = Dtype.AUTO,
    max_model_len: LengthOption = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="tokens of a KV block; the engine's own if left out")
    ] = None,
    imports: ImportOption = None,
    legalized: Annotated[
        bool, typer.Option("--legalized", help="the module as the target gets it: kernels in place of composites")
    ] = False,
    optimized: Annotated[
        bool, typer.Option("--optimized", help="compile, and show the HLO that the target's compiler made")
    ] = False,
    flat: Annotated[
        bool, typer.Option("--flat", help="write every layer out, instead of one function for each kind of layer")
    ] = False,
    loop: Annotated[
        bool, typer.Option("--loop", help="roll repeated layers into a loop over stacked weights and caches")
    ] = False,
    tensor_parallel: Annotated[
        int,
        typer.Option(min=1, metavar="DEVICES", help="split the model over so many devices of the target's topology"),
    ] = 1,
    expert_parallel: Annotated[
        bool, typer.Option("--expert-parallel", help="with --tensor-parallel: whole experts on each device")
    ] = False,
    pass_option: Annotated[
        list[str] | None,
        typer.Option(metavar="PASS.OPTION=VALUE", help="change an option of a pass; repeatable"),
    ] = None,
    list_passes: Annotated[
        bool, typer.Option("--list-passes", help="list the passes with their options and defaults; needs no MODEL")
    ] = False,
    print_after: Annotated[
        list[str] | None,
        typer.Option(metavar="PASS", help="print the graph after that pass (all: every one); repeatable"),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="tell which kernel each composite became and why, and what rewrites declined"),
    ] = False,
    timing: Annotated[bool, typer.Option("--timing", help="time and size of each stage and pass")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print facts about the result as JSON instead of the result")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="compile for the target and report as one page: does it fit, where the time goes, what became kernels",
        ),
    ] = None,
) -> None:
    from .imports import import_words
    from .lower.flow import lower_model, show_passes
    from .lower.request import Request, parse_bucket, parse_target

    import_words(imports or ())
    if list_passes:
        show_passes(as_json=as_json)
        return
    if model is None:
        raise console.UsageError("there is no MODEL", next_step="lower-model --help")
    lower_model(
        Request(
            model,
            output,
            str(stop_after),
            tuple(parse_bucket(word) for word in bucket or ()),
            parse_target(target),
            str(dtype),
            max_model_len,
            block_size,
            frozenset(print_after or ()),
            tuple(pass_option or ()),
            tuple(name for name, wanted in (("legalized", legalized), ("optimized", optimized)) if wanted),
            explain,
            timing,
            as_json,
            html,
            flat,
            loop,
            tensor_parallel,
            expert_parallel,
        )
    )


@check_app.command(no_args_is_help=True, epilog=console.EXIT_CODES)
def check(
    model: ModelWord,
    dtype: DtypeOption = Dtype.AUTO,
    max_model_len: LengthOption = None,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lists every op of MODEL that cannot be lowered, with counts, source lines and reasons; exit 1 if there is one."""
    from .check_model import check_model
    from .imports import import_words

    import_words(imports or ())
    check_model(model, dtype=str(dtype), max_model_len=max_model_len, as_json=as_json)


ENGINE_EXAMPLES = (
    """
\b
Examples:
  lower-model engine config.json --target tpu-v6e:2x4 --max-num-seqs 64 --max-model-len 4096
  lower-model engine MODEL --target tpu-v6e --dtype bfloat16 -o bundle/
  vllm serve MODEL --dtype bfloat16 --additional-config '{"fxhlo": {"bundle": "bundle/"}}'
"""
    + console.EXIT_CODES
)


@engine_app.command(
    no_args_is_help=True,
    epilog=ENGINE_EXAMPLES,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def engine(
    context: typer.Context,
    model: ModelWord,
    target: TargetOption = "cpu",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="write the engine's bundle there")
    ] = None,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compiles all programs of the engine that `vllm serve MODEL` would start, and tells whether they fit with weights and caches.

    Other options are vLLM's own, after MODEL, as `vllm serve` takes them. Exit 1 where they do not fit.
    """
    from .imports import import_words
    from .lower.engine import lower_engine
    from .lower.request import parse_target

    if model.startswith("-"):
        raise console.UsageError(
            f"{model} stands where MODEL belongs", next_step="lower-model engine MODEL [vLLM's options]"
        )
    import_words(imports or ())
    lower_engine(model, context.args, parse_target(target), output, as_json=as_json)


@inspect_app.command(no_args_is_help=True, epilog=console.EXIT_CODES)
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="folder that `save` or `lower-model -o` wrote")],
    entry: Annotated[str | None, typer.Option(help="the whole signature of this entry")] = None,
    as_json: JsonOption = False,
) -> None:
    """Shows what a bundle holds: entries, signature, sizes, targets. Needs neither torch nor a device."""
    from .inspect_bundle import inspect_bundle

    inspect_bundle(bundle, entry=entry, as_json=as_json)


@conformance_app.command(epilog=console.EXIT_CODES)
def conformance(
    target: TargetOption = "cpu",
    kernel: Annotated[list[str] | None, typer.Option(metavar="NAME", help="only this kernel; repeatable")] = None,
    ops: Annotated[bool, typer.Option(help="the slice of ops as well")] = True,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs the kernels' cases and a slice of ops on TARGET: do they compile, and are the numbers right; exit 1 if not.

    Numbers are checked on a device of the target where there is one. Each group runs in a process of its own.
    """
    from .conformance import conformance as run_it
    from .imports import import_words
    from .lower.request import parse_target

    import_words(imports or ())
    run_it(parse_target(target), kernel or (), ops=ops, as_json=as_json, imports=imports or ())


PLAN_EXAMPLES = (
    """
\b
Examples:
  The plan of the engine's defaults, and a picture of it:
    lower-model plan build/models/SmolLM2-135M-Instruct
    lower-model plan config.json --max-num-seqs 128 -o plan.svg
  For the requests that a server has had, kept in a file that the engine takes:
    lower-model plan MODEL --lengths http://localhost:8000/metrics --budget 12 --json > plan.json
    vllm serve MODEL --additional-config '{"fxhlo": {"plan": "plan.json"}}'
"""
    + console.EXIT_CODES
)


@plan_app.command(no_args_is_help=True, epilog=PLAN_EXAMPLES)
def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="folder, config.json or hub id")],
    max_num_seqs: Annotated[int | None, typer.Option(min=1, metavar="REQUESTS", help="vLLM's option")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=1, metavar="TOKENS", help="vLLM's option")] = None,
    max_model_len: LengthOption = None,
    long_prefill_token_threshold: Annotated[
        int | None, typer.Option(min=0, metavar="TOKENS", help="vLLM's option")
    ] = None,
    chunked_prefill: Annotated[
        bool | None,
        typer.Option("--enable-chunked-prefill/--no-enable-chunked-prefill", help="vLLM's option"),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="of requests: a CSV of prompt,output; a debug log of vLLM; JSON of vllm bench serve; /metrics of a server",
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|SECONDSs|SIZE",
            help="of programs: a number (12), seconds to compile them in (30s), or their memory (50MB); repeatable; as "
            "many as sizes that double would be if left out",
        ),
    ] = None,
    target: TargetOption = "cpu",
    dtype: DtypeOption = Dtype.AUTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="write there: .json the plan, .svg a picture, .html a page"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the plan as the engine takes it")] = False,
) -> None:
    """Plans the programs of MODEL's engine: the fewest whose steps are padded least, and a proof that each step has one."""
    from .lower.request import parse_target
    from .plan.command import plan_model

    options = {
        "dtype": str(dtype), "max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len, "long_prefill_token_threshold": long_prefill_token_threshold,
        "enable_chunked_prefill": chunked_prefill,
    }  # fmt: skip
    plan_model(model, options, parse_target(target), lengths, tuple(budget or ()), output, as_json=as_json)


@profile_app.command(no_args_is_help=True, epilog=console.EXIT_CODES)
def profile(
    place: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="folder of FXHLO_PROFILE, or one trace in it")],
    as_json: JsonOption = False,
) -> None:
    """Sums up the profiles of an engine: each program's steps, and how long each part of them took."""
    from .profile.command import show_profile

    show_profile(place, as_json=as_json)


COMMANDS = {
    "check": check_app, "conformance": conformance_app, "engine": engine_app, "inspect": inspect_app, "plan": plan_app, "profile": profile_app,
}  # fmt: skip


def main() -> None:
    """The console script `lower-model`."""
    words = sys.argv[1:]
    if words and words[0] == "--version":
        from .. import __version__

        print(f"lower-model {__version__}")
        return
    if words and words[0] in COMMANDS:
        sys.exit(console.run(COMMANDS[words[0]], words[1:], f"lower-model {words[0]}"))
    sys.exit(console.run(lower_app, words, "lower-model"))


if __name__ == "__main__":
    main()
