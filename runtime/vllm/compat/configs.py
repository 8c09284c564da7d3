"""vLLM's config of a model folder, as its engine makes it, and vLLM's defaults."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import vllm.envs as envs
from vllm.config import VllmConfig

from ...core.errors import FxhloError, UnsupportedError
from ..folder import HEADS, SIZES, ModelError, check_sizes
from ..front import told
from ..settings import not_a_mapping
from .registry import is_multimodal


def engine_config(
    model: str,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    block_size: int | None = None,
    **more: Any,
) -> VllmConfig:
    """Makes vLLM's config of a model folder as its engine would; reads config.json alone.

    max_model_len, max_num_batched_tokens, block_size: in tokens; None: the engine's default. more: of vLLM's EngineArgs, by name.
    Raises ModelError with vLLM's or transformers' message for a bad config, FxhloError for unsupported options.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    arguments = EngineArgs(
        model=model,
        dtype=dtype,  # type: ignore[arg-type]  # EngineArgs accepts a command line's strings
        max_model_len=max_model_len,  # type: ignore[arg-type]  # None: the model's own
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,  # type: ignore[arg-type]  # None: vLLM's own
        load_format="dummy",
        skip_tokenizer_init=True,
        **more,
    )
    return _engine_config(arguments, UsageContext.LLM_CLASS)


def engine_config_of(model: str, words: Sequence[str]) -> VllmConfig:
    """Makes vLLM's config as `vllm serve MODEL WORDS` would; reads no weights. words: vLLM's own options.

    Raises UnsupportedError for words that are none; else as `engine_config`.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UnsupportedError(message, next_step="vllm serve --help=all lists vLLM's options")

    ours = ["--model", model, "--load-format", "dummy"]
    if not (Path(model) / "tokenizer_config.json").exists():
        ours.append("--skip-tokenizer-init")
    arguments = EngineArgs.from_cli_args(EngineArgs.add_cli_args(Parser()).parse_args([*words, *ours]))
    return _engine_config(arguments, UsageContext.OPENAI_API_SERVER)


def _engine_config(arguments: Any, context: Any) -> VllmConfig:
    """Makes the config of vLLM's EngineArgs. Raises ModelError with what is wrong with the model's own."""
    model = arguments.model
    try:
        return arguments.create_engine_config(context)
    except FxhloError:
        raise
    except Exception as problem:
        if wrong := not_a_mapping(problem):
            raise wrong from None
        _check_stored(Path(model) / "config.json")  # which the platform has not seen yet
        raise ModelError(
            f"vLLM can make no engine of this config: {told(problem)}",
            where=model,
            next_step="check `architectures` and the sizes in config.json",
        ) from problem


def _check_stored(config: Path) -> None:
    """`check_sizes` of a config.json that vLLM makes nothing of, by the names in the file. A multimodal model, of which vLLM wants a
    processor first, is refused as one."""
    if not config.is_file():
        return
    stored = json.loads(config.read_bytes())
    stored = stored if isinstance(stored, dict) else {}
    named = stored.get("architectures") or ()
    if any(is_multimodal(one) for one in named if isinstance(one, str)):
        raise UnsupportedError(
            "fxhlo does not support multimodal models yet", where=config, next_step="serve a text model"
        )
    check_sizes({name: stored.get(name) for name in (*SIZES, *HEADS)}, config)


def kv_cache_space() -> int | None:
    """VLLM_CPU_KVCACHE_SPACE: GiB of KV cache; 0 or None where it is not set."""
    return envs.VLLM_CPU_KVCACHE_SPACE


def default_sizes() -> tuple[set[int], set[int]]:
    """vLLM's default values of max_num_batched_tokens and of max_num_seqs."""
    from vllm.engine.arg_utils import EngineArgs

    tokens, requests = EngineArgs.get_batch_defaults(1)
    return set(tokens.values()), set(requests.values())
