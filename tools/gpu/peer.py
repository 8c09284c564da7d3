"""The same decode step by transformers: a static cache, eager and by torch.compile, random weights made on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

WARM, TIMED = 3, 20


@dataclass(frozen=True)
class Peer:
    """form: "eager" or "torch.compile". seconds: a step; None where `problem` says why."""

    form: str
    seconds: float | None
    problem: str = ""


def measure(config: Mapping[str, Any], requests: int, context: int, *, fast: bool = False) -> Iterator[Peer]:
    """On CUDA where torch has it, else on the host. fast: eager alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

    device = "cuda" if torch.cuda.is_available() else "cpu"
    taken = {
        name: value for name, value in config.items() if name not in ("architectures", "model_type", "torch_dtype")
    }
    made = AutoConfig.for_model(config["model_type"], **taken)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16).eval()
    cache = StaticCache(config=made, max_cache_len=context)
    ids = torch.randint(0, int(config["vocab_size"]), (requests, 1), device=device)
    position = torch.full((requests, 1), context - 1, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def one(forward: Callable[..., Any]) -> Any:
        at = {"position_ids": position, "cache_position": position[0]}
        return forward(input_ids=ids, past_key_values=cache, use_cache=True, **at).logits[:, -1].argmax(-1)

    for form in ("eager",) if fast else ("eager", "torch.compile"):
        forward = model if form == "eager" else torch.compile(model, mode="reduce-overhead")
        try:
            with torch.no_grad():
                yield Peer(form, _seconds(partial(one, forward), wait))
        except Exception as failed:  # the other form goes on
            yield Peer(form, None, f"{type(failed).__name__}: {failed}"[:500])


def _seconds(step: Callable[[], Any], wait: Callable[[], Any]) -> float:
    for _ in range(WARM):
        step()
    wait()
    began = perf_counter()
    for _ in range(TIMED):
        step()
    wait()
    return (perf_counter() - began) / TIMED
