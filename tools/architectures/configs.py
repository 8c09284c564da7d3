"""A small config.json for a key of vLLM's registry that is not compared: from transformers' class, or from what only vLLM's class reads.

Comes in: the key. Goes out: a folder with config.json. Guaranteed: no weights, no network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .alone import ALONE, BORROWED, MORE
from .small import SIZES

LLAMA = {**SIZES, "model_type": "llama", "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0}
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


def write(name: str, folder: Path) -> None:
    """Writes config.json of the architecture into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**_config(name), "architectures": [name], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))


def _config(name: str) -> dict[str, Any]:
    import transformers

    if name in ALONE:
        return {**LLAMA, **ALONE[name]}
    borrowed = getattr(transformers, BORROWED[name]) if name in BORROWED else None
    known = borrowed or getattr(getattr(transformers, name, None), "config_class", None)
    return dict(LLAMA) if known is None else {**_shrunk(known), **MORE.get(name, {})}


def _shrunk(config_class: Any) -> dict[str, Any]:
    """The class's defaults, with two layers where that is one of its arguments; sizes cost nothing without weights."""
    for layers in LAYERS:
        try:
            made = config_class(**{layers: 2})
        except Exception:
            continue
        if getattr(made, layers, None) == 2:
            return made.to_dict()
    return config_class().to_dict()
