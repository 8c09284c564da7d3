"""`python streamed_load.py FOLDER LAYERS HIDDEN INTERMEDIATE HEADS KV_HEADS VOCABULARY [DEVICES]`: loads a Llama of these sizes from a sparse
file onto a device that drops what it is given, or onto a mesh of such devices, and prints as JSON how much memory the host held.

In a process of its own, whose memory nothing else takes. The file has holes for values: it takes no space, and reads as zeros.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

BYTES = 2
"""Of an element of bfloat16."""


def write(
    folder: Path, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int
) -> dict[str, int]:
    """Writes config.json and model.safetensors; returns the bytes of a layer, of the largest of layer and embedding, and of all tensors."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16",
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    kv = kv_heads * hidden // heads
    layer = {
        "input_layernorm": [hidden], "mlp.down_proj": [hidden, intermediate], "mlp.gate_proj": [intermediate, hidden],
        "mlp.up_proj": [intermediate, hidden], "post_attention_layernorm": [hidden], "self_attn.k_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, hidden], "self_attn.q_proj": [hidden, hidden], "self_attn.v_proj": [kv, hidden],
    }  # fmt: skip
    shapes = {
        f"model.layers.{number}.{name}.weight": shape for number in range(layers) for name, shape in layer.items()
    }
    ends = {
        "lm_head.weight": [vocabulary, hidden],
        "model.embed_tokens.weight": [vocabulary, hidden],
        "model.norm.weight": [hidden],
    }
    header: dict[str, Any] = {}
    position = 0
    for name, shape in sorted((shapes | ends).items()):  # as transformers writes them
        size = BYTES
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    each = sum(
        int(end - start)
        for name, (start, end) in ((n, h["data_offsets"]) for n, h in header.items())
        if ".layers.0." in name
    )
    return {"layer": each, "largest": max(each, BYTES * vocabulary * hidden), "weights": position}


class Memory:
    """The most memory of this process that belongs to no file, in bytes, from now on."""

    def __init__(self) -> None:
        self.begin = self.most = self.now()
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def now() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, self.now())
            time.sleep(0.0005)


class Dropped:
    """A device array whose value nobody keeps."""

    def block_until_ready(self) -> None:
        pass


def main() -> None:
    folder, sizes = Path(sys.argv[1]), [int(word) for word in sys.argv[2:8]]
    devices = int(sys.argv[8]) if len(sys.argv) > 8 else 1
    facts = write(folder, *sizes)
    from fxhlo.runtime.vllm.compat import engine_config, layers_of
    from fxhlo.runtime.vllm.meshes import plan_of
    from fxhlo.runtime.vllm.model import build_model
    from fxhlo.runtime.vllm.streaming import Stream

    given: list[int] = []

    def put(name: str, array: Any) -> Dropped:
        for device in range(devices):
            piece = plan.split(name).piece(array, plan.mesh, device)
            given.append(piece.nbytes * (1 if piece.nbytes < array.nbytes else device == 0))  # copies count once
        return Dropped()

    def get(name: str, dropped: Any) -> Any:
        raise AssertionError(f"{name} is read again")

    config = engine_config(str(folder), dtype="bfloat16", max_model_len=64, max_num_seqs=4)
    plan = plan_of(build_model(config, weights=False), layers_of(config), (), devices)
    config.load_config.load_format = "auto"
    stream = Stream(put, get)
    memory, began = Memory(), time.perf_counter()
    model = build_model(config, weights=True, stream=stream)
    placed = stream.finish(model)
    print(json.dumps({
        **facts, "given": sum(given), "arrays": len(placed), "held": stream.peak, "grown": memory.most - memory.begin,
        "seconds": time.perf_counter() - began,
    }))  # fmt: skip
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
