"""Serves small models one after the other in this process, each through one engine, and compares every run with transformers' answers.

Comes in: folders that reference.py has written, one a line of standard input. Goes out: an `Outcome` a line, as JSON, on the standard output that
the process was started with. The engine runs in this process, so that vLLM is imported once; what it prints goes to standard error.

The runs of one engine: `whole` (all prompts at once, with log-probabilities of the prompts), `chunks` (prompts in parts of 64), `alone` (one
after the other), `cached` (again, where the model allows prefix caching: what it shares is found) and `preempted` (all requests are stopped in
the middle, lose what they keep on the device, and resume).

With the argument `eager` there is no engine: vLLM's class with fxhlo's layers runs in eager torch, once over each text, which takes a second a model
and tells a layer's fault from a runner's.

    python -P -m fxhlo.tools.architectures.serve [eager]
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .catalog import DRAWN, architecture_of, kind_of
from .outcome import Outcome, Run
from .reference import NEW_TOKENS, Answer, Reference
from .small import Architecture

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

STEP = 256
"""Tokens of the largest step; a prompt fits into one."""
CHUNK = 64
ALONE = (0, 3, 6)
"""Prompts that are also served one after the other: one token, two and a half windows, the longest."""
SIZES = {
    "max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": STEP, "kv_cache_memory_bytes": 32 << 20, "dtype": "float32",
    "skip_tokenizer_init": True, "disable_log_stats": True, "seed": 0,
    # a program for decoding and one for prompts: sizes between them prove nothing about a model
    "additional_config": {"fxhlo": {"budget": "2"}},
}  # fmt: skip


def serve(one: Architecture, folder: Path, runs_of: Callable[[Path, list[Answer]], list[Run]]) -> Outcome:
    """Makes all runs. Exceptions are part of the answer. runs_of: `engine_runs` or `eager_runs`."""
    begun = perf_counter()
    reference = Reference.load(folder)
    if reference.error:
        return Outcome(folder.name, "no reference", reference.error)
    try:
        runs = runs_of(folder, reference.answers)
    except Exception as problem:
        traceback.print_exc()
        refused = is_refusal(problem) or (DRAWN in folder.name and makes_no_model(folder))
        return Outcome(folder.name, "refused" if refused else "failed", told(problem), seconds=perf_counter() - begun)
    worst = max(run.difference for run in runs)
    same = all(run.tokens == "equal" for run in runs)
    said = ", ".join(f"{run.name}: {run.tokens}" for run in runs if run.tokens != "equal")
    return Outcome(
        folder.name,
        "served" if same and worst <= one.tolerance else "differs",
        said,
        worst,
        tuple(runs),
        perf_counter() - begun,
    )


def engine_runs(folder: Path, answers: list[Answer]) -> list[Run]:
    """Starts an engine, makes all runs and ends it."""
    with _engine(folder) as llm:
        return list(_runs(llm, answers))


def eager_runs(folder: Path, answers: list[Answer]) -> list[Run]:
    """The model with its weights and fxhlo's layers, called with each whole text as one request."""
    import torch

    from ...runtime.vllm.model import build_model, step_function

    config = _config(folder)
    config.load_config.load_format = "auto"
    step = step_function(build_model(config, weights=True))
    worst, told = 0.0, "equal"
    for answer in answers:
        tokens = torch.tensor(answer.prompt + answer.tokens, dtype=torch.int32)
        places = torch.arange(len(tokens), dtype=torch.int32)
        with torch.no_grad():
            scores = torch.log_softmax(step(tokens, places, places)[:-1].float(), -1)
        given = scores.gather(1, tokens[1:, None].long())[:, 0]
        worst = max(worst, float((given - torch.tensor(answer.prompt_logprobs + answer.logprobs)).abs().max()))
        if scores[len(answer.prompt) - 1 :].argmax(-1).tolist() != answer.tokens:
            told = f"tokens after {len(answer.prompt)} differ"
    return [Run("eager", told, worst)]


def makes_no_model(folder: Path) -> bool:
    """Whether vLLM's own code raises for the config alone: it refuses the model before a weight is loaded."""
    from ...runtime.vllm.model import build_model

    try:
        build_model(_config(folder), weights=False)
    except Exception as problem:
        last = list(traceback.walk_tb(list(_causes(problem))[-1].__traceback__))[-1][0]
        return "site-packages" in last.f_code.co_filename
    return False


def _config(folder: Path) -> Any:
    from ...runtime.vllm.compat import engine_config

    return engine_config(str(folder), dtype="float32", max_model_len=256, max_num_seqs=4, max_num_batched_tokens=STEP)


@contextmanager
def _engine(folder: Path) -> Iterator[LLM]:
    from vllm import LLM

    # vLLM's default for models without attention is off
    more = {"enable_prefix_caching": True} if kind_of(folder.name) == "state space" else {}
    llm = LLM(model=str(folder), **SIZES, **more)  # type: ignore[arg-type]
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def _runs(llm: LLM, answers: list[Answer]) -> Iterator[Run]:
    engine = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]  # of a client in this process
    caching = engine.scheduler.cache_config.enable_prefix_caching
    prompts = [answer.prompt for answer in answers]
    yield _compared("whole", _generate(llm, prompts, prompt_logprobs=0), answers)
    llm.reset_prefix_cache()
    engine.scheduler.scheduler_config.long_prefill_token_threshold = CHUNK
    yield _compared("chunks", _generate(llm, prompts), answers)
    engine.scheduler.scheduler_config.long_prefill_token_threshold = 0
    if caching:
        again = _generate(llm, prompts)
        found = sum(output.num_cached_tokens or 0 for output in again)
        yield _compared("cached", again, answers, f"{found} tokens")
    llm.reset_prefix_cache()
    some = [answers[index] for index in ALONE]
    yield _compared("alone", [_generate(llm, [one.prompt])[0] for one in some], some)
    llm.reset_prefix_cache()
    yield _compared("preempted", _preempted(llm, prompts), answers)


def _params(**more: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=1, detokenize=False, **more)


def _generate(llm: LLM, prompts: list[list[int]], **more: Any) -> list[RequestOutput]:
    given: list[Any] = [{"prompt_token_ids": one} for one in prompts]
    return llm.generate(given, _params(**more), use_tqdm=False)


def _preempted(llm: LLM, prompts: list[list[int]]) -> list[RequestOutput]:
    """All requests, of which those that run are preempted in the fourth step."""
    engine = llm.llm_engine
    finished: dict[str, Any] = {}
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, _params())
    step = 0
    while engine.has_unfinished_requests():
        step += 1
        if step == 4:
            engine.reset_prefix_cache(reset_running_requests=True)
        finished |= {output.request_id: output for output in engine.step() if output.finished}
    return [finished[str(index)] for index in range(len(prompts))]


def _compared(name: str, outputs: list[RequestOutput], answers: list[Answer], note: str = "") -> Run:
    """The largest difference of a log-probability, up to the first token that is not transformers'."""
    worst, told = 0.0, "equal"
    for output, answer in zip(outputs, answers, strict=True):
        if output.prompt_logprobs is not None:
            ours = [next(iter(place.values())).logprob for place in output.prompt_logprobs if place]
            worst = max([worst, *(abs(a - b) for a, b in zip(ours, answer.prompt_logprobs, strict=True))])
        completion = output.outputs[0]
        for index, (token, expected) in enumerate(zip(completion.token_ids, answer.tokens, strict=True)):
            if token != expected:
                told = f"token {index} after {len(answer.prompt)} differs" if told == "equal" else told
                break
            assert completion.logprobs is not None
            worst = max(worst, abs(completion.logprobs[index][token].logprob - answer.logprobs[index]))
    return Run(name, told, worst, note)


def is_refusal(problem: BaseException) -> bool:
    """Whether fxhlo's UnsupportedError is among the causes."""
    from ...runtime.core.errors import UnsupportedError

    return any(isinstance(one, UnsupportedError) for one in _causes(problem))


def told(problem: BaseException) -> str:
    """fxhlo's own error where it is one of the causes, else the first cause, on one line."""
    from ...runtime.core.errors import FxhloError

    causes = list(_causes(problem))
    own = next((one for one in causes if isinstance(one, FxhloError)), None)
    first = own or causes[-1]
    text = f"{'' if own else f'{type(first).__name__}: '}{first}"
    if own and causes[-1] is not own:
        text += f" [{type(causes[-1]).__name__}: {causes[-1]}]"
    return " ".join(text.split())[:500]


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    while problem is not None:
        yield problem
        problem = problem.__cause__ or (None if problem.__suppress_context__ else problem.__context__)


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to stdout
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import_module("vllm")
    gc.freeze()  # vLLM collects garbage several times at each start, and most of what it would visit are these libraries
    runs_of = eager_runs if sys.argv[1:] == ["eager"] else engine_runs
    for line in sys.stdin:
        folder = Path(line.strip())
        print(json.dumps(asdict(serve(architecture_of(folder.name), folder, runs_of))), file=out, flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
