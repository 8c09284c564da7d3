"""Writes small random models, each a folder with transformers' greedy answers beside it, in a process without vLLM.

vLLM replaces methods of transformers' classes when it serves them, so nothing of it is imported here. Comes in: a folder a line of standard
input, named as an architecture. Goes out: config.json, model.safetensors and reference.json in it; what is up to date is kept. A model that
transformers cannot make gets a reference.json with the error alone. Each folder is answered with a line when it is there.

    python -P -m fxhlo.tools.architectures.reference
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from .catalog import architecture_of
from .small import Architecture

LENGTHS = (1, 5, 17, 40, 64, 130, 200)
"""Of the prompts, in tokens: below and above the windows (16), at and across the chunks (64)."""
NEW_TOKENS = 8
FILE = "reference.json"


@dataclass(frozen=True)
class Answer:
    """tokens: greedy; logprobs: of each of them; prompt_logprobs: of each token of the prompt but the first."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]


@dataclass(frozen=True)
class Reference:
    """What transformers answered. key: of what the model was made of; error: why there are no answers."""

    key: str
    answers: list[Answer]
    error: str = ""

    @classmethod
    def load(cls, folder: Path) -> Reference:
        fields = json.loads((folder / FILE).read_text())
        return cls(fields["key"], [Answer(**answer) for answer in fields["answers"]], fields["error"])

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self)))


def key_of(one: Architecture) -> str:
    """Changes with the row, with this file and with transformers."""
    from transformers import __version__

    made_of = [asdict(one), Path(__file__).read_text(), __version__]
    return sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def write(one: Architecture, folder: Path) -> None:
    """Makes the model's folder anew, unless it is up to date."""
    key = key_of(one)
    if (folder / FILE).exists() and Reference.load(folder).key == key:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        answers = _make(one, folder)
    except Exception as problem:
        text = " ".join(str(problem).split())[:300]
        Reference(key, [], f"{type(problem).__name__}: {text}").save(folder)
        return
    Reference(key, answers).save(folder)


def _make(one: Architecture, folder: Path) -> list[Answer]:
    import torch
    import transformers

    config = getattr(transformers, one.config)(**one.sizes)
    config.dtype = "float32"
    torch.manual_seed(0)
    ways = {"attn_implementation": one.attention, "experts_implementation": one.experts}
    given = {name: way for name, way in ways.items() if way}
    model = transformers.AutoModelForCausalLM.from_config(config, **given).float().eval()
    with torch.no_grad():
        _randomize(model, one.zero, one.spread)
        model.save_pretrained(folder)
        answers = [_answer(model, prompt) for prompt in prompts()]
    _rename(folder / "model.safetensors", one.renamed)
    path = folder / "config.json"
    written = json.loads(path.read_text()) | {"architectures": [one.name]} | one.written
    path.write_text(json.dumps({name: value for name, value in written.items() if value is not None}, indent=1))
    return answers


def _randomize(model: Any, zero: Sequence[str], spread: float) -> None:
    """Weights far enough apart that no answer is a coin toss, and of bfloat16's values, as published ones: vLLM keeps some in that type.

    What a state decays by keeps its class's own values with a spread of 1.
    """
    for name, parameter in model.named_parameters():
        if any(part in name for part in zero):
            parameter.zero_()
            continue
        if "A_log" in name or name.endswith(".D"):
            if spread != 1:
                parameter += 0.1 * spread * parameter.clone().normal_()
            continue
        if parameter.ndim >= 2:
            parameter.normal_(0, 0.12)
        elif "norm" in name or "ln" in name:
            parameter += 0.1 * spread * parameter.clone().normal_()
        else:
            parameter.normal_(0, 0.05 * spread)
        parameter.copy_(parameter.bfloat16())
    for name, buffer in model.named_buffers():
        if name.endswith("bias") and buffer.is_floating_point():  # of routers
            buffer.copy_(buffer.normal_(0, 0.05 * spread).bfloat16())


def _rename(file: Path, renamed: Mapping[str, str | None]) -> None:
    from safetensors.torch import load_file, save_file

    if not renamed:
        return
    weights = {}
    for name, tensor in load_file(file).items():
        if any(part in name for part, other in renamed.items() if other is None):
            continue
        for part, other in renamed.items():
            name = name.replace(part, other or "")
        weights[name] = tensor
    save_file(weights, file, metadata={"format": "pt"})


def prompts() -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 320, (length,), generator=generator).tolist() for length in LENGTHS]


def _answer(model: Any, prompt: list[int]) -> Answer:
    """Greedy, the whole text anew for each token: no cache of transformers is trusted."""
    import torch

    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        scores = torch.log_softmax(model(torch.tensor([tokens]), use_cache=False).logits[0].float(), -1)
        tokens.append(int(scores[-1].argmax()))
    given = scores[range(len(tokens) - 2), tokens[1:-1]].tolist() + [float(scores[-1, tokens[-1]])]
    return Answer(prompt, tokens[len(prompt) :], given[len(prompt) - 1 :], given[: len(prompt) - 1])


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # transformers prints to standard output
    for line in sys.stdin:
        folder = Path(line.strip())
        write(architecture_of(folder.name), folder)
        print(folder, file=out, flush=True)


if __name__ == "__main__":
    main()
