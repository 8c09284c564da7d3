"""Names the causes of errors of vLLM, safetensors and torch while a model is built and loaded, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import FxhloError, UnsupportedError
from . import compat
from .conditions import condition_of
from .folder import ModelError

CAUSES = (
    (
        "Cannot find any model weights",
        "there are no weights in the model folder",
        "put the model's *.safetensors files there, or use load_format=dummy for random ones",
    ),
    (
        "SafetensorError",
        "a weight file is damaged or cut off",
        "download or copy the model's *.safetensors files again",
    ),
    (
        "were not initialized from checkpoint",
        "the weight files lack parameters of this architecture",
        "check that all *.safetensors files of the model are there",
    ),
    (
        "AssertionError: Attempted to load weight",
        "a weight has another shape than config.json says",
        "check that config.json belongs to these weights",
    ),
    (
        "There is no module or parameter named",
        "the weight files have parameters that this architecture lacks",
        "check `architectures` in config.json",
    ),
)
"""(a part of the error's type or text, what it means, what to do), first match wins."""


@contextmanager
def named_cause(vllm_config: compat.VllmConfig) -> Iterator[None]:
    """Converts exceptions of vLLM, safetensors and torch during loading into a ModelError that says what to do."""
    folder = vllm_config.model_config.model
    try:
        yield
    except FxhloError:
        raise
    except Exception as problem:
        text = " ".join(str(problem).split())[:400] or condition_of(problem)
        for sign, message, next_step in CAUSES:
            if sign in f"{type(problem).__name__}: {text}":
                raise ModelError(f"{message}: {text}", where=folder, next_step=next_step) from problem
        module = compat.get_model_architecture(vllm_config.model_config)[0].__module__
        if any(f".{vendor}." in module for vendor in ("nvidia", "amd", "xpu")):
            raise UnsupportedError(
                f"fxhlo does not support {module} of vLLM yet, which is written for a vendor's GPUs: {type(problem).__name__}: {text}",
                next_step="serve this model on another platform of vLLM",
            ) from problem
        raise ModelError(
            f"the model cannot be built: {type(problem).__name__}: {text}",
            where=folder,
            next_step="check config.json against the weights; the cause above has the place in vLLM",
        ) from problem
