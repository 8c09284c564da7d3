"""Cases of errors of the front doors: commands, benchmarks, the plugin. See test_texts.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from fxhlo.passes.fx.paged_attention import PagedAttention
from fxhlo.passes.options import OptionError, parse_setting
from fxhlo.runtime.core.errors import FxhloError
from fxhlo.runtime.vllm.folder import ModelError as FolderError
from fxhlo.runtime.vllm.folder import check_folder
from fxhlo.runtime.vllm.memory import CacheSizeError, kv_cache_bytes
from fxhlo.runtime.vllm.settings import Settings, SettingsError
from fxhlo.tools import models
from fxhlo.tools.bench import peers
from fxhlo.tools.bench.engine import BenchError, Engine
from fxhlo.tools.console import UsageError
from fxhlo.tools.lower import request

GIB = 2**30


def config(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text)
    return folder / "config.json"


def opened(word: str | Path) -> None:
    with models.opened(str(word)):
        pass


def engine_that_ends(folder: Path) -> None:
    (folder / "vllm.py").write_text("raise ImportError('vLLM is not installed here')")
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(folder)}), Engine("fxhlo", {}, fxhlo=True) as engine:
        engine.first_token()


def missing_pass() -> None:
    parse_setting("paged-atention.block_size=8", (PagedAttention(),))


CASES: dict[str, tuple[type[FxhloError], Callable[[Path], object], str]] = {
    "no such file": (
        models.ModelError,
        lambda tmp: opened("./model.pt2"),
        """\
there is no file or folder ./model.pt2
  next: MODEL is a folder with a config.json, a config.json alone, a .pt2 of torch.export.save, or a hub id""",
    ),
    "a dimension that does not exist": (
        UsageError,
        lambda tmp: request.check_dimensions([{"token": 8}], ("tokens", "requests"), "a vLLM step"),
        """\
--bucket token=8: a vLLM step has no dimension 'token'
  next: did you mean tokens? its dimensions are tokens, requests""",
    ),
    "a pass that does not exist": (
        OptionError,
        lambda tmp: missing_pass(),
        """\
there is no pass 'paged-atention'
  next: did you mean paged-attention? the passes are paged-attention""",
    ),
    "a config that is not JSON": (
        models.ModelError,
        lambda tmp: opened(config(tmp, '{"architectures": [}')),
        """\
config.json is not JSON: Expecting value
  at: TMP/config.json:1:20
  next: get the file again from where it came""",
    ),
    "a config of no model": (
        models.ModelError,
        lambda tmp: opened(config(tmp, "{}")),
        """\
config.json does not say which model it is: it has no `architectures`
  at: TMP/config.json
  next: name the class, as "architectures": ["LlamaForCausalLM"]; is this the config.json of a model?""",
    ),
    "an option of fxhlo's that does not exist": (
        SettingsError,
        lambda tmp: Settings.of(SimpleNamespace(additional_config={"fxhlo": {"budgt": "3"}})),  # type: ignore[arg-type]
        """\
--additional-config: fxhlo has no option 'budgt'
  next: did you mean budget or bundle? its options are target, bundle, plan, lengths, budget, attention_data_parallel""",
    ),
    "a folder without weights": (
        FolderError,
        lambda tmp: check_folder(tmp),
        """\
there are no weights in the model folder
  at: TMP
  next: put the model's *.safetensors files there, or use --load-format dummy for random ones""",
    ),
    "a cache that does not fit": (
        CacheSizeError,
        lambda tmp: kv_cache_bytes(4 * GIB, 1 << 20, GIB, 2 * GIB),
        """\
the KV cache does not fit: 4.00 GiB are wanted and 1.90 GiB are free
  next: lower --max-model-len, --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE or --gpu-memory-utilization, or free memory on this machine""",
    ),
    "a cache that holds no request": (
        CacheSizeError,
        lambda tmp: kv_cache_bytes(GIB, 1 << 20, 2 * GIB, 4 * GIB),
        """\
the KV cache would not hold one request of the model's greatest length: 2.00 GiB are needed, 1.00 GiB may be used
  next: lower --max-model-len or raise --kv-cache-memory-bytes""",
    ),
    "a peer in this process": (
        peers.PeerError,
        lambda tmp: peers.lower_by_torch_mlir(torch.export.export(torch.nn.ReLU(), (torch.ones(2),))),
        """\
torch-mlir==20261001 cannot be imported: No module named 'torch_mlir'
  next: start the process with the environment that fxhlo.tools.bench.peers.environment gives""",
    ),
    "an engine that ends": (
        BenchError,
        lambda tmp: engine_that_ends(tmp),
        """\
the engine of fxhlo ended:
.*ImportError: vLLM is not installed here
  next: correct what its last lines name, and measure again""",
    ),
}
