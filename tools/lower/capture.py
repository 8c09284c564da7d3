"""Captures the model of a command: vLLM's step of a folder, or the program of a .pt2, with the passes that belong to it.

Comes in: a `Model` and options of the command line. Goes out: a `Captured`. Guaranteed: no weight of a folder is read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.core.errors import FxhloError, UnsupportedError
from .. import console
from ..console import UsageError
from ..models import Model, ModelError

if TYPE_CHECKING:
    from torch.nn import Module
    from vllm.config import VllmConfig

    from ...passes.base import Pass
    from ...passes.hlo.plan import Plan
    from ...passes.program import Program
    from ...runtime.core.targets import Target
    from ...runtime.vllm.states.spec import StateSpec


ENDING = re.compile(r"(For[A-Z]\w*|LMHeadModel|LMModel|Model)$")
"""The end of a class's name, which says its task."""


@dataclass(frozen=True)
class Captured:
    """A captured Program and its passes. sizes: of a finished Program, the dimensions' defaults. plan: how a model of vLLM's lies on
    several devices; None for one."""

    program: Program
    passes: tuple[Pass, ...]
    sizes: Callable[[Program], dict[str, int]]
    plan: Plan | None = None


@dataclass(frozen=True)
class Split:
    """Over how many devices of a target a model is split (--tensor-parallel), and whether each has whole experts."""

    devices: int
    experts_apart: bool
    target: Target


def load_libraries(model: Model) -> None:
    """Imports torch, or vLLM with it, so that a capture's time does not include these seconds."""
    if model.kind == "exported":
        import_module("...lowering.capture.exporting", __package__)
        return
    quiet_vllm()
    try:
        for name in ("runtime.vllm.compat", "runtime.vllm.steps.capture"):
            import_module(f"...{name}", __package__)
    except ModuleNotFoundError as problem:
        if (problem.name or "").split(".")[0] != "vllm":
            raise
        raise FxhloError(
            "vLLM is not installed, and a model folder is captured through vLLM's own model class",
            next_step="install vLLM (README.md has the lines), or lower a .pt2 file of torch.export.save",
        ) from problem


def quiet_vllm() -> None:
    """Silences vLLM's log, whose errors are raised as well, unless the user has set its level."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # it warns where there is no Triton


def known_passes(model: Model) -> tuple[Pass, ...]:
    """The passes of the model's kind, with example options: known before anything is captured."""
    from ...passes.default import default_passes

    return default_passes() if model.kind == "exported" else example_step_passes()


def example_step_passes() -> tuple[Pass, ...]:
    """The passes of vLLM's step. Their options are an example: the engine's come from the model's config."""
    from ...runtime.vllm.steps.options import StepOptions
    from ...runtime.vllm.steps.passes import step_passes

    example = StepOptions(
        block_size=16, max_model_len=8192, max_tokens=1024, max_requests=64, vocab_size=128256, logprobs=20
    )
    return step_passes(example)


def capture(
    model: Model,
    dtype: str = "auto",
    max_model_len: int | None = None,
    block_size: int | None = None,
    buckets: Sequence[Mapping[str, int]] = (),
    *,
    split: Split | None = None,
    times: dict[str, float] | None = None,
    quiet: bool = False,
) -> Captured:
    """Captures the model, in the stages "config" (vLLM's, of a folder) and "capture". Raises FxhloError.

    buckets: requested sizes; they raise the engine's limits where they are larger. split: over several devices; what does not divide
    is refused before anything is captured. times, quiet: as `console.stage` takes them.
    """
    if model.kind == "exported":
        if split is not None:
            raise UsageError(
                f"--tensor-parallel {split.devices}: {model.name} has no layers of vLLM's to split",
                next_step="name a model folder",
            )
        with console.stage("capture", times, quiet) as came_out:
            captured = capture_exported(model.path)
            came_out(f"{len(captured.program.graph.nodes)} nodes")
        return captured
    with console.stage("config", times, quiet):
        check_architecture(model)
        config = _engine_config(model, dtype, max_model_len, block_size, buckets)
    with console.stage("capture", times, quiet) as came_out:
        captured = _capture_step(config, split)
        came_out(f"{len(captured.program.graph.nodes)} nodes")
    return captured


def _capture_step(config: VllmConfig, split: Split | None) -> Captured:
    from ...runtime.vllm.layers.catalog import states
    from ...runtime.vllm.model import build_model, layers_of
    from ...runtime.vllm.steps.capture import capture_step, options_of
    from ...runtime.vllm.steps.passes import step_passes
    from .sizes import engine_sizes

    built = build_model(config, weights=False)
    layers = layers_of(built)
    plan = None if split is None else _plan(built, layers, states(layers, config.cache_config.block_size), split)
    program = capture_step(config, built)
    options = options_of(config, built)
    return Captured(program, step_passes(options), lambda finished: engine_sizes(finished, options), plan)


def _plan(model: Module, layers: Mapping[str, Any], states: Iterable[StateSpec], split: Split) -> Plan:
    """How the model lies on the devices. Raises UsageError, by this command's option, where they do not divide it."""
    from ...passes.hlo.plan import rows_for
    from ...runtime.vllm.meshes import plan_of

    try:
        return plan_of(
            model, layers, states, split.devices, experts_apart=split.experts_apart, rows=rows_for(split.target)
        )
    except UnsupportedError as problem:
        raise UsageError(
            f"--tensor-parallel {split.devices}: {problem.message}",
            next_step=(problem.next_step or "").replace("--tensor-parallel-size", "--tensor-parallel"),
        ) from None


def _engine_config(
    model: Model,
    dtype: str,
    max_model_len: int | None,
    block_size: int | None,
    buckets: Sequence[Mapping[str, int]],
) -> VllmConfig:
    """vLLM's config of the folder. Raises UsageError where it is `--max-model-len` alone that vLLM does not take."""
    from ...runtime.vllm.compat import engine_config
    from ...runtime.vllm.platform import STEP_REQUESTS, STEP_TOKENS

    def asked(name: str, engine: int) -> int | None:
        largest = max((sizes.get(name, 0) for sizes in buckets), default=0)
        return largest if largest > engine else None

    def of(length: int | None) -> VllmConfig:
        return engine_config(
            str(model.path),
            dtype=dtype,
            max_model_len=length,
            max_num_seqs=asked("requests", STEP_REQUESTS),
            max_num_batched_tokens=asked("tokens", STEP_TOKENS),
            block_size=block_size,
        )

    try:
        return of(max_model_len)
    except FxhloError as problem:
        if max_model_len is None or (own := of(None).model_config.max_model_len) >= max_model_len:
            raise
        raise UsageError(
            f"--max-model-len {max_model_len}: the model has {own} positions",
            where=problem.where,
            next_step=f"give at most {own}; with VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 in the environment a rotary table is extended",
        ) from problem


@contextmanager
def taken_by_vllm(model: Model) -> Iterator[None]:
    """Makes a UsageError of an error of vLLM's config that is made within, where the options are wrong and not the model."""
    from ...runtime.vllm import folder
    from ...runtime.vllm.compat import engine_config
    from ...runtime.vllm.front import told

    try:
        yield
    except folder.ModelError as problem:
        engine_config(str(model.path))  # raises where it is the model
        why = told(problem.__cause__) if problem.__cause__ is not None else problem.message
        raise UsageError(
            f"vLLM does not take these options: {why}", next_step="vllm serve --help=all lists them with their values"
        ) from problem


def check_architecture(model: Model) -> None:
    """Raises ModelError if neither vLLM, nor a plugin of it, nor transformers, nor the model's own code has a class that the config names.

    vLLM's Transformers backend takes the latter two. Of a decoder's class, vLLM makes one that pools under the family's other names.
    """
    import transformers
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    from ...runtime.vllm.compat import registered_name

    load_general_plugins()  # as an engine does before it makes a config: they register models
    known = set(ModelRegistry.get_supported_archs())
    named = model.config.get("architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if not classes:
        raise ModelError(
            "`architectures` in config.json is not a list of names",
            where=model.path / "config.json",
            next_step='write it as "architectures": ["LlamaForCausalLM"]',
        )
    elsewhere = "auto_map" in model.config or any(hasattr(transformers, name) for name in classes)
    if known.isdisjoint(map(registered_name, classes)) and not elsewhere:
        near = neighbours(classes[0], known)
        own = "--import the module that registers it with vLLM's ModelRegistry, or torch.export the model and lower the .pt2"
        raise ModelError(
            f"vLLM has no model class {', '.join(classes)}",
            where=model.path / "config.json",
            next_step=f"did you mean {' or '.join(near)}?" if near else f"if the class is yours: {own}",
        )


def neighbours(name: str, known: Iterable[str]) -> list[str]:
    """Up to 3 of the known classes whose family's name is like that of `name`, those of the same task first.

    The endings, as ForCausalLM, are most of a name and are the same in hundreds: they are not compared.
    """
    family = _family(name)
    if len(family) < 3:
        return []
    classes: dict[str, list[str]] = {}
    for each in sorted(known):
        classes.setdefault(_family(each).lower(), []).append(each)
    near = get_close_matches(family.lower(), classes, 3, 0.75)
    near += [each for each in classes if len(each) > 3 and each in family.lower() and each not in near]
    task = name[len(family) :]
    found = [each for key in near for each in classes[key]]
    return sorted(found, key=lambda each: not each.endswith(task))[:3]


def _family(name: str) -> str:
    """Llama of LlamaForCausalLM, LlamaModel and LlamaLMHeadModel."""
    return ENDING.sub("", name)


def capture_exported(path: Path) -> Captured:
    """Captures the program in a file of torch.export.save, whose ops are registered in this process."""
    from ...lowering.capture.exporting import capture as capture_module
    from ...passes.default import default_passes
    from .pt2 import load

    return Captured(capture_module(load(path)), default_passes(), lambda finished: {})
