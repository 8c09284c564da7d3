"""Tiny models with random weights as folders, and the logits of their captured Program beside those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from fxhlo.passes.program import Program
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.steps.capture import capture_step

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def configured(kind: str, sizes: dict[str, Any], folder: Path) -> transformers.PreTrainedConfig:
    """Writes config.json of transformers' config class `kind` alone: a model without weights."""
    config = getattr(transformers, kind)(**sizes)
    config.torch_dtype = "float32"
    config.architectures = [transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    return config


def written(kind: str, sizes: dict[str, Any], folder: Path, **further: Any) -> transformers.PreTrainedModel:
    """Writes a model of transformers' config class `kind`. further: what config.json has besides what that class writes.

    Once in a process for an architecture that vLLM's Transformers backend serves: it decorates transformers' own classes.
    """
    config = configured(kind, sizes, folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.12)
            elif "norm" not in name:
                parameter.normal_(0, 0.05)
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **further}))
    return model


def captured(folder: Path, *, max_model_len: int = 128) -> tuple[torch.nn.Module, Program]:
    """vLLM's model with the folder's weights, and the Program of the same model without."""
    config = engine_config(str(folder), dtype="float32", max_model_len=max_model_len, max_num_seqs=4)
    config.load_config.load_format = "auto"
    loaded = build_model(config, weights=True)
    return loaded, capture_step(config, build_model(config, weights=False, like=loaded))


def logits(model: torch.nn.Module, program: Program, tokens: torch.Tensor) -> torch.Tensor:
    """The Program's logits after each of `tokens` [T], in eager torch: [T, V]."""
    rows = torch.arange(len(tokens), dtype=torch.int32)
    inputs = {"input_ids": tokens.int(), "positions": rows, "logit_rows": rows}
    given = {**program.tensors, **dict(model.named_parameters()), **dict(model.named_buffers()), **inputs}
    with torch.no_grad():
        (found,) = program.module(*[given[argument.name] for argument in program.arguments])
    return found
