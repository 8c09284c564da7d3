"""Identity: everything on which the programs of an engine depend, as JSON, and how two of them differ.

Comes in: vLLM's config, the target, and for the whole the model and the sizes. Goes out: the cache's key, which a bundle of an engine
carries too. Guaranteed: paths are no part of it, so that a model and a bundle may be moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import files, pjrt
from ...core.targets import Target
from ..parallel import devices_of, experts_apart, hosts_of, requests_of
from .kinds import Bucket
from .options import StepOptions

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

Json = dict[str, object]

OF_CONFIG = ("max_tokens", "max_requests", "vocab_size", "logprobs", "logprobs_mode", "pooling")
"""Options that do not depend on the model's layers."""

FLAGS = {
    "options.block_size": "--block-size",
    "options.max_model_len": "--max-model-len",
    "options.max_tokens": "--max-num-batched-tokens",
    "options.max_requests": "--max-num-seqs",
    "options.logprobs": "--max-logprobs",
    "options.logprobs_mode": "--logprobs-mode",
    "options.pooling": "--runner pooling",
    "options.cached_states": "--enable-prefix-caching",
    "options.feed": "--async-scheduling",
    "plan.mesh": "--tensor-parallel-size, a mesh",
    "dtype": "--dtype",
    "cache_dtype": "--kv-cache-dtype",
    "num_blocks": "the number of KV blocks",
    "num_slots": "the number of rows of states",
    "target": "the target",
    "hosts": "--nnodes",
    "block_size": "--block-size",
    "devices": "--tensor-parallel-size",
    "experts_apart": "--enable-expert-parallel",
    "requests": "attention_data_parallel",
    "async_scheduling": "--async-scheduling",
    "seed": "--seed",
    "stages": "the stage of each layer (--pipeline-parallel-size)",
}
"""What people call a part of an identity."""
OF_NO_PROGRAM = ("_name_or_path", "transformers_version")
"""Keys of a model's config that say where it is from."""


def of_engine(config: VllmConfig, target: Target) -> Json:
    """What is known before the model is built: the model's config, some options, versions, and the device that compiles or runs."""
    import jaxlib
    import torch
    import vllm

    from ...core import native

    model_config = config.model_config
    early = OF_CONFIG if model_config.original_max_model_len == -1 else (*OF_CONFIG, "max_model_len")
    model = {key: value for key, value in model_config.hf_config.to_dict().items() if key not in OF_NO_PROGRAM}
    return {
        # as text: a config may hold infinities, which JSON has no numbers for
        "model": json.dumps(model, default=str, sort_keys=True),
        "dtype": str(model_config.dtype).removeprefix("torch."),
        "cache_dtype": config.cache_config.cache_dtype,
        "options": {name: value for name, value in of_options(StepOptions.of(config)).items() if name in early},
        "target": str(target),
        "hosts": hosts_of(config),
        "device": pjrt.fingerprint(target),
        "native": native.identity() if target.family == "cpu" else None,
        "versions": {
            "torch": torch.__version__,
            "vllm": vllm.__version__,
            "jaxlib": jaxlib.__version__,
            "fxhlo": source_digest(),
        },
    }


def of_hosts(config: VllmConfig, target: Target) -> Json:
    """What must be the same on all hosts of an engine: also what decides how steps are made and sampled."""
    return {
        **of_engine(config, target),
        "block_size": config.cache_config.block_size,
        "devices": devices_of(config),
        "experts_apart": experts_apart(config),
        "requests": requests_of(config),
        "async_scheduling": config.scheduler_config.async_scheduling,
        "seed": config.model_config.seed,
    }


def of_options(options: StepOptions) -> Json:
    """A step's options, without the limits, of which the buckets are made: they are compared themselves."""
    return {name: value for name, value in asdict(options).items() if name != "limits"}


def of_programs(
    config: VllmConfig,
    model: torch.nn.Module,
    options: StepOptions,
    buckets: Iterable[Bucket],
    sizes: Mapping[str, int],
    target: Target,
) -> Json:
    """The whole: also the model's class and parameters, the step's options, and the sizes of the programs."""
    return {
        **of_engine(config, target),
        "class": type(model).__qualname__,
        "parameters": sorted(name for name, _ in model.named_parameters()),  # some depend on the weight files
        "options": of_options(options),
        "buckets": [str(bucket) for bucket in buckets],
        **sizes,
    }


def differences(
    there: Mapping[str, object], here: Mapping[str, object], *, partly: bool = False, place: str = "the bundle"
) -> list[str]:
    """What differs, in people's words: "--max-num-seqs is 4 in the bundle and 8 here". partly: only what `here` has is compared.
    place: where `there` is from."""

    def differing(name: str, there: object, here: object) -> list[str]:
        if there == here:
            return []
        if isinstance(there, dict) and isinstance(here, dict):
            keys = sorted(here if partly else {*there, *here})
            return [line for key in keys for line in differing(f"{name}.{key}", there.get(key), here.get(key))]
        if isinstance(there, list) and isinstance(here, list):
            lacks = [str(one) for one in here if one not in there]
            more = [str(one) for one in there if one not in here]
            if lacks or more:
                parts = [f"{place} lacks {_some(lacks)}"] if lacks else []
                return [f"{name}: {'; '.join([*parts, *([f'only {place} has {_some(more)}'] if more else [])])}"]
        return [f"{FLAGS.get(name, name)} is {there} in {place} and {here} here"]

    names = sorted(here if partly else {*there, *here})
    return [line for name in names for line in differing(name, _plain(there.get(name)), _plain(here.get(name)))]


def _plain(value: object) -> object:
    """As JSON has it; the model's config, which is kept as text, as the mapping that it is."""
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return json.loads(json.dumps(value))


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@cache
def source_digest() -> str:
    """A digest of fxhlo's own sources: a changed compiler invalidates the programs."""
    root = Path(__file__).parents[3]
    return files.sources_digest((root / folder for folder in ("kernels", "lowering", "passes", "runtime")), root)
