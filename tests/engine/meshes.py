"""Engines of one tiny model on different numbers of devices, in one process: greedy and seeded answers as JSON in the file named.

Arguments: the model's folder, the numbers of devices as JSON (or pairs: of a stage, and of stages; "4/2": four, of which two share a
context; "4:2": in two groups with requests of their own, and experts, if any, apart), the file. What cannot start leaves its error's text.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any


def compilations() -> list[str]:
    """What jax compiles from now on, on any device: an engine that is ready compiles nothing."""
    from jax._src import monitoring

    found: list[str] = []
    monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: found.append(name) if "compile" in name else None
    )
    return found


def main() -> None:
    from vllm import LLM, SamplingParams

    prompts = [{"prompt_token_ids": [(7 * row + 3 * at) % 300 + 5 for at in range(5 + 9 * row)]} for row in range(4)]
    parameters = [
        SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False, temperature=0.0, logprobs=2),
        SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False, temperature=0.8, seed=3, top_p=0.9),
    ]
    experts = "moe_intermediate_size" in json.loads((Path(sys.argv[1]) / "config.json").read_text())
    answers: dict[str, Any] = {}
    gc.freeze()  # what is imported stays, and each engine's collections need not visit it
    for asked in json.loads(sys.argv[2]):
        split, stages = asked if isinstance(asked, list) else (asked, 1)
        devices, _, context = str(split).partition("/")
        devices, _, requests = devices.partition(":")
        try:
            llm = LLM(
                model=sys.argv[1], load_format="dummy", tensor_parallel_size=int(devices), pipeline_parallel_size=stages, max_model_len=128,
                max_num_seqs=4, max_num_batched_tokens=32, kv_cache_memory_bytes=16 << 20, dtype="float32", seed=0,
                skip_tokenizer_init=True, disable_log_stats=True, decode_context_parallel_size=int(context or 1),
                additional_config={"fxhlo": {"budget": "2", "attention_data_parallel": int(requests or 1)}}, enable_expert_parallel=experts and bool(requests),
            )  # fmt: skip
        except Exception as problem:
            answers[str(asked)] = f"{type(problem).__name__}: {problem}"
            continue
        compiled = compilations()
        outputs = [llm.generate(prompts, each, use_tqdm=False) for each in parameters]
        parallel = llm.llm_engine.vllm_config.parallel_config
        answers[str(asked)] = {
            "tokens": [[list(one.outputs[0].token_ids) for one in found] for found in outputs],
            "blocks": llm.llm_engine.vllm_config.cache_config.num_gpu_blocks,
            "world": parallel.world_size,
            "compiled": len(compiled),
        }
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
    Path(sys.argv[3]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
