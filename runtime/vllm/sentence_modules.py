"""Checks what the files of sentence-transformers in a model folder say against what vLLM's poolers compute.

vLLM leaves out a module that it does not know, a pooling, a dense layer without weights, and says so in a log at most. Comes in: a folder,
and vLLM's config of a model that pools. Guaranteed: an embedding is one pooling of the hidden states, then the folder's dense layers, then
its normalization; a score has the activation that config.json names. Reads JSON files and the headers of weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import UnsupportedError
from ..core.weights import opened
from . import compat

FILE = "modules.json"
ORDER = re.compile("P?D*N*")
"""Pooling, dense layers and normalization, by their first letters."""
WITHOUT_EFFECT = ("Transformer", "Dropout")
"""Last parts of the names of modules that are the model itself, or do nothing when it is served."""
POOLED = ("cls_token", "cls", "mean_tokens", "mean", "lasttoken")
WEIGHTS = ("weight", "linear.weight", "dense.weight")
"""Names of a dense layer's matrix in its file."""
POOLING = "the pooling "
CHOOSE = 'choose a pooling by --pooler-config \'{"seq_pooling_type": "MEAN"}\' (CLS, MEAN or LAST)'
MEND = (
    "save the folder again with sentence-transformers if one of its files is wrong; without a module that vLLM does not know the embeddings "
    "are others, and modules.json must not name it"
)
OWN_POOLER = "BertSpladeSparseEmbeddingModel"
"""An architecture that is a sentence-transformers folder of other modules, with a pooler of its own."""


def check_modules(model_config: compat.ModelConfig) -> None:
    """Raises UnsupportedError with everything in modules.json that vLLM would leave out, and with an activation that it would replace."""
    folder = Path(model_config.model)
    if not folder.is_dir():
        return
    if model_config.score_type == "cross-encoder":
        _check_activation(model_config.hf_config, folder)
        return
    file = folder / FILE
    if not file.is_file() or model_config.architecture == OWN_POOLER:
        return
    wrong = list(_left_out(json.loads(file.read_bytes()), folder, compat.pools_as_asked(model_config)))
    if wrong:
        poolings = [one.startswith(POOLING) for one in wrong]
        raise UnsupportedError(
            f"vLLM leaves out what this sentence-transformers folder computes: {'; '.join(wrong)}",
            where=file,
            next_step="; ".join(
                step for step, needed in ((CHOOSE, any(poolings)), (MEND, not all(poolings))) if needed
            ),
        )


def _left_out(modules: Sequence[Mapping[str, Any]], folder: Path, asked: bool) -> Iterator[str]:
    """asked: whether the user chose the pooling."""
    order = ""
    for module in modules:
        kind, name = compat.kind_of_module(module["type"]), str(module["type"])
        order += kind[:1]
        if not kind and name.rpartition(".")[2] not in WITHOUT_EFFECT:
            yield f"the module {name}"
        where = folder / str(module.get("path") or "")
        if kind == "Pooling" and not asked:
            yield from _pooling(_read(where))
        if kind == "Dense":
            yield from _dense(_read(where), where)
    if not ORDER.fullmatch(order):
        yield "the order of its modules: a pooling, dense layers and a normalization follow each other here"


def _pooling(config: Mapping[str, Any]) -> Iterator[str]:
    """Several modes at once are concatenated; vLLM takes the last. Of two words vLLM reads the first, so `mean_sqrt_len_tokens` is MEAN."""
    named = config.get("pooling_mode")
    old = [
        name.removeprefix("pooling_mode_") for name, set_ in config.items() if set_ is True and "pooling_mode_" in name
    ]
    modes = ([named] if isinstance(named, str) else list(named or ())) or old
    if len(modes) > 1 or any(mode not in POOLED for mode in modes):
        yield f"{POOLING}{' and '.join(map(str, modes))}"


def _dense(config: Mapping[str, Any], where: Path) -> Iterator[str]:
    if not config:
        yield f"{where.name}, which has no config.json"
        return
    activation = config.get("activation_function")
    if activation and not compat.has_activation(str(activation)):
        yield f"the activation {activation} of {where.name}"
    if config.get("use_residual"):
        yield f"the residual of {where.name}"
    yield from _weights(config, where)


def _weights(config: Mapping[str, Any], where: Path) -> Iterator[str]:
    """vLLM goes on without a layer whose weights it cannot load, and with a random bias where the file has none."""
    file = where / "model.safetensors"
    if not file.is_file():
        if not (where / "pytorch_model.bin").is_file():
            yield f"{where.name}, which has no weights"
        return
    with opened(file) as stored:
        shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118 - not a mapping
    name, shape = next(((name, shapes[name]) for name in WEIGHTS if name in shapes), ("", []))
    wanted = [config.get("out_features"), config.get("in_features")]
    if shape != wanted:
        yield f"{where.name}, whose weights are {shape or 'not there'} and should be {wanted}"
    elif config.get("bias", True) and name.replace("weight", "bias") not in shapes:
        yield f"the bias of {where.name}, which its weights do not have"


def _check_activation(config: Any, folder: Path) -> None:
    """vLLM takes softmax for any sigmoid of several labels."""
    given = getattr(config, "sentence_transformers", None)
    own = given.get("activation_fn") if isinstance(given, Mapping) else None
    name = str(own or getattr(config, "sbert_ce_default_activation_function", None) or "")
    if not getattr(config, "problem_type", None) and config.num_labels > 1 and name.endswith(".Sigmoid"):
        raise UnsupportedError(
            f"config.json has {name} for {config.num_labels} labels, and vLLM computes a softmax",
            where=folder / "config.json",
            next_step='--hf-overrides \'{"problem_type": "multi_label_classification"}\' has a sigmoid of each label',
        )


def _read(folder: Path) -> Mapping[str, Any]:
    """A module's config; none where it has none."""
    file = folder / "config.json"
    return json.loads(file.read_bytes()) if file.is_file() else {}
