"""One engine in a process of its own: a job as JSON on standard input, its answers as JSON in the file named by it.

job: {"engine": arguments of vllm.LLM, "runs": [{"prompts": [[token ids]], "sampling": {...} or [{...}], "one_by_one": bool}],
"out": path}. Answers: per run, per prompt {"tokens": [...], "logprobs": [[[id, value], ...]] or null,
"prompt_logprobs": [[[id, value, rank], ...]] or null, "text", "ended": why it ended, "others": tokens of further outputs (n > 1)}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def answer(output: Any) -> dict[str, Any]:
    completion = output.outputs[0]
    logprobs = None
    if completion.logprobs is not None:
        logprobs = [[[token, entry.logprob] for token, entry in position.items()] for position in completion.logprobs]
    prompt_logprobs = None
    if output.prompt_logprobs is not None:
        prompt_logprobs = [
            [[token, entry.logprob, entry.rank] for token, entry in (position or {}).items()]
            for position in output.prompt_logprobs
        ]
    return {
        "prompt_logprobs": prompt_logprobs,
        "tokens": list(completion.token_ids),
        "logprobs": logprobs,
        "cached": output.num_cached_tokens,
        "text": completion.text,
        "ended": [completion.finish_reason, completion.stop_reason],
        "others": [list(other.token_ids) for other in output.outputs[1:]],
    }


def parameters(given: dict[str, Any]) -> Any:
    """SamplingParams of a request as it stands in JSON, whose keys are strings and which has no classes."""
    from vllm import SamplingParams
    from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind, StructuredOutputsParams

    makers: dict[str, Callable[[Any], Any]] = {
        "logit_bias": lambda bias: {int(token): value for token, value in bias.items()},
        "structured_outputs": lambda given: StructuredOutputsParams(**given),
        "repetition_detection": lambda given: RepetitionDetectionParams(**given),
        "output_kind": lambda name: RequestOutputKind[name],
    }
    return SamplingParams(**{name: makers[name](value) if name in makers else value for name, value in given.items()})


def main() -> None:
    job = json.load(sys.stdin)
    from vllm import LLM

    llm = LLM(**job["engine"])
    runs = []
    for run in job["runs"]:
        prompts = [{"prompt_token_ids": tokens} for tokens in run["prompts"]]
        sampling = run["sampling"]
        every = [parameters(sampling[i] if isinstance(sampling, list) else sampling) for i in range(len(prompts))]
        if run.get("one_by_one"):
            outputs = [
                llm.generate([prompt], one, use_tqdm=False)[0] for prompt, one in zip(prompts, every, strict=True)
            ]
        else:
            outputs = llm.generate(prompts, every, use_tqdm=False)
        runs.append([answer(output) for output in outputs])
    with open(job["out"], "w") as out:
        json.dump(runs, out)


if __name__ == "__main__":
    main()
