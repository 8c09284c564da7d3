"""Checks a model folder before an engine starts: whether its weight files exist and are complete.

Reads file sizes and the headers of safetensors files, no weights. Raises ModelError here rather than minutes later in
another process. Folders that vLLM would download, and formats other than safetensors, are left to vLLM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..core.errors import BundleError, FxhloError
from ..core.weights import opened

PATTERNS = ("*.safetensors", "*.bin", "*.pt")
"""Weight files that vLLM's loader looks for."""
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")
"""Sizes without which no text model computes anything, by the names that transformers gives them in every config."""
HEADS = ("num_attention_heads", "num_key_value_heads")
"""As SIZES, of a model that has attention."""


EXPERT = re.compile(r"(.+\.experts)\.(?:(\d+)\.)?[^.]+")
"""A tensor of one expert, or of all experts of a layer: the layer, and the expert's number."""


class ModelError(FxhloError):
    """No model can be made of a folder: unknown architecture; weights missing, damaged or of other shapes."""


def check_folder(folder: Path) -> None:
    """Raises ModelError where the folder has no weights, or a safetensors file is missing or cut off."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in _named_by(index):
            if not (folder / name).is_file():
                raise ModelError(
                    f"the weight file {name} is missing",
                    where=index,
                    next_step="copy or download it: the index names it as a part of this model",
                )
    if not any(next(folder.glob(pattern), None) for pattern in PATTERNS):
        raise ModelError(
            "there are no weights in the model folder",
            where=folder,
            next_step="put the model's *.safetensors files there, or use --load-format dummy for random ones",
        )
    for file in sorted(folder.glob("*.safetensors")):
        check_file(file)


def check_sizes(sizes: Mapping[str, object], where: Path | str) -> None:
    """Raises ModelError where a size of config.json is below 1, as `num_hidden_layers: 0`; vLLM divides by it or finds no layer."""
    found = [f"{name} is {size}" for name, size in sizes.items() if isinstance(size, int) and size < 1]
    if found:
        raise ModelError(
            f"a model cannot have this config: {', '.join(found)}",
            where=where,
            next_step="write sizes of at least 1 into config.json; is this the config.json of a model?",
        )


def check_experts(folder: Path, count: int, zero: int = 0) -> None:
    """Raises ModelError where the safetensors files have another number of experts than config.json, `count`. Reads headers alone.

    zero: how many experts there are besides that need no weights, for which transformers stores some. Layers with different numbers, of
    which a config may have a list, are left to the loader.
    """
    found: dict[str, int] = {}
    for layer, experts in (one for file in sorted(folder.glob("*.safetensors")) for one in _experts_in(file)):
        found[layer] = max(found.get(layer, 0), experts)
    if len(set(found.values())) == 1 and not any(count <= one <= count + zero for one in found.values()):
        layer, experts = next(iter(found.items()))
        raise ModelError(
            f"config.json has {count} experts, the weight files {experts} ({layer})",
            where=folder,
            next_step="correct the number of experts in config.json, or take the weight files that belong to it",
        )


def _experts_in(file: Path) -> Iterator[tuple[str, int]]:
    """(layer, at least how many experts it has) for each tensor of experts in the file."""
    with opened(file) as stored:
        for name in stored.keys():  # noqa: SIM118 - not a mapping
            match = EXPERT.match(name)
            if match is None:
                continue
            layer, number = match.groups()
            if number is not None:
                yield layer, int(number) + 1
            elif len(shape := stored.get_slice(name).get_shape()) == 3:
                yield layer, shape[0]


def check_file(file: Path) -> None:
    """Raises ModelError where a safetensors file is cut off or damaged. Reads its header alone."""
    try:
        with opened(file):
            pass
    except BundleError as problem:
        raise ModelError(problem.message, where=file, next_step="download or copy this file again") from problem


def _named_by(index: Path) -> list[str]:
    """Names of the weight files in an index. Raises ModelError."""
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(
            f"the index of the weight files cannot be read ({problem})",
            where=index,
            next_step="download or copy this file again",
        ) from problem
