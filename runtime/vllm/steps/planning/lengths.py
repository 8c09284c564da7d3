"""Lengths of requests: of prompts and of their answers, from a file or a running server.

Comes in: a path or a URL. Goes out: `Lengths`, pairs with how often each was met. Guaranteed: what is none of these is refused, with the line:

- CSV: two columns, prompt and output, in tokens; a third one may be a count. A first line of names is allowed, in any order.
- A log of vLLM with `--enable-log-requests` and VLLM_LOGGING_LEVEL=DEBUG, which has the tokens of each request.
- What `vllm bench serve --save-result --save-detailed` writes: JSON with input_lens and output_lens.
- /metrics of a server, by its URL or saved to a file: vllm:request_prompt_tokens and vllm:request_generation_tokens. They are two histograms,
  so prompts and answers are taken as independent, and a length as the geometric mean of its bin.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ....core.errors import FxhloError
from .load import Length

FORMS = "a CSV of prompt,output lengths; a debug log of vLLM's requests; JSON of `vllm bench serve --save-detailed`; /metrics of a server"
PROMPTS, ANSWERS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
NAMES = {
    "prompt": ("prompt", "prompt_tokens", "prompt_len", "prompt_length", "input", "input_len", "input_tokens", "input_length"),
    "output": ("output", "output_tokens", "output_len", "output_length", "answer", "completion_tokens", "generation_tokens"),
    "count": ("count", "weight", "requests"),
}  # fmt: skip
TIMEOUT = 10
"""Seconds that a server has to answer."""


class LengthsError(FxhloError):
    """Lengths that cannot be read, or are of no known form."""


@dataclass(frozen=True)
class Lengths:
    """pairs: of prompt and answer, with counts. source: where they are from, for people."""

    pairs: tuple[Length, ...]
    source: str

    @property
    def requests(self) -> float:
        return sum(count for _, _, count in self.pairs)

    def means(self) -> tuple[float, float]:
        """Mean tokens of a prompt and of an answer."""
        whole = self.requests
        return (
            sum(prompt * count for prompt, _, count in self.pairs) / whole,
            sum(answer * count for _, answer, count in self.pairs) / whole,
        )


def read_lengths(place: str) -> Lengths:
    """Reads a file or a URL. Raises LengthsError."""
    if place.startswith(("http://", "https://")):
        url = place if place.rstrip("/").endswith("/metrics") else f"{place.rstrip('/')}/metrics"
        return _made(_of_metrics(_fetched(url), url), url)
    path = Path(place)
    try:
        text = path.read_text(errors="replace")
    except OSError as problem:
        raise LengthsError(
            f"the lengths cannot be read: {problem.strerror}", where=path, next_step=f"name a file: {FORMS}"
        ) from problem
    if text.lstrip().startswith("{"):
        return _made(_of_bench(text, path), place)
    if PROMPTS in text:
        return _made(_of_metrics(text, place), place)
    if "details: prompt" in text or "Received request" in text:
        return _made(_of_log(text, path), place)
    return _made(_of_csv(text, path), place)


def _made(counts: Iterable[tuple[tuple[int, int], float]], source: str) -> Lengths:
    pairs = tuple((prompt, answer, count) for (prompt, answer), count in sorted(counts))
    if not pairs:
        raise LengthsError("there are no requests in it", where=source, next_step=f"give lengths of requests: {FORMS}")
    return Lengths(pairs, source)


def _of_csv(text: str, path: Path) -> Iterable[tuple[tuple[int, int], float]]:
    counts: Counter[tuple[int, int]] = Counter()
    columns = {"prompt": 0, "output": 1, "count": 2}
    for line, row in enumerate(csv.reader(text.splitlines()), 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or cells[0].startswith("#"):
            continue
        if not counts and (named := _columns(cells)):
            columns = named
            continue
        numbers = {name: _number(cells, at) for name, at in columns.items() if at < len(cells)}
        prompt, answer, count = numbers.get("prompt"), numbers.get("output"), numbers.get("count", 1.0)
        if (
            prompt is None
            or answer is None
            or count is None
            or prompt < 1
            or not (prompt + answer + count).is_integer()
        ):
            raise LengthsError(
                f"{','.join(row)[:80]!r} is not prompt,output in tokens",
                where=f"{path}:{line}",
                next_step=f"write whole numbers, prompts from 1 on; or give {FORMS}",
            )
        counts[int(prompt), int(answer)] += int(count)
    return [(pair, float(count)) for pair, count in counts.items() if count]


def _columns(cells: Sequence[str]) -> dict[str, int] | None:
    """Which column has what, by a first line of names."""
    found = {
        name: at
        for name, names in NAMES.items()
        for at, cell in enumerate(cells)
        if cell.lower().replace(" ", "_") in names
    }
    return found if "prompt" in found and "output" in found else None


def _number(cells: Sequence[str], at: int) -> float | None:
    try:
        number = float(cells[at])
    except ValueError:
        return None
    return number if 0 <= number < 2**31 else None


def _of_log(text: str, path: Path) -> Iterable[tuple[tuple[int, int], float]]:
    """Pairs of a request's two lines; a streamed answer's parts are summed up."""
    prompts = {
        name: _listed(ids) for name, ids in re.findall(r"Request (\S+) details: .*prompt_token_ids: \[([^\]]*)\]", text)
    }
    answers: Counter[str] = Counter()
    for name, ids in re.findall(
        r"Generated response (\S+?)(?: \(streaming \w+\))? details: output_token_ids: \[([^\]]*)\]", text
    ):
        answers[name] += _listed(ids)
    counts: Counter[tuple[int, int]] = Counter()
    for name, prompt in prompts.items():
        answer = next(
            (
                count
                for key, count in answers.items()
                if key == name or key.startswith(f"{name}-") or name.startswith(f"{key}-")
            ),
            0,
        )
        if prompt:
            counts[prompt, answer] += 1
    if not counts:
        raise LengthsError(
            "the log has no tokens of requests", where=path,
            next_step="serve with --enable-log-requests --enable-log-outputs and VLLM_LOGGING_LEVEL=DEBUG in the environment, or give the server's /metrics",
        )  # fmt: skip
    return [(pair, float(count)) for pair, count in counts.items()]


def _listed(ids: str) -> int:
    """How many token ids a list in a log has."""
    return ids.count(",") + 1 if ids.strip() else 0


def _of_bench(text: str, path: Path) -> Iterable[tuple[tuple[int, int], float]]:
    wrong = LengthsError(
        "this JSON has no lists input_lens and output_lens of the same length",
        where=path, next_step="write it with vllm bench serve --save-result --save-detailed",
    )  # fmt: skip
    try:
        stored = json.loads(text)
    except ValueError as problem:
        raise LengthsError(f"this is no JSON: {problem}", where=path, next_step=f"give {FORMS}") from problem
    prompts, answers = stored.get("input_lens"), stored.get("output_lens")
    if not isinstance(prompts, list) or not isinstance(answers, list) or len(prompts) != len(answers):
        raise wrong
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in (*prompts, *answers)):
        raise wrong
    pairs = Counter((prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if prompt > 0 <= answer)
    return [(pair, float(count)) for pair, count in pairs.items()]


def _fetched(url: str) -> str:
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=TIMEOUT) as answer:
            return answer.read().decode(errors="replace")
    except (URLError, OSError, ValueError) as problem:
        raise LengthsError(
            f"the server does not answer: {getattr(problem, 'reason', problem)}",
            where=url, next_step="name a running vLLM server, as http://localhost:8000/metrics, that was started without --disable-log-stats",
        ) from problem  # fmt: skip


def _of_metrics(text: str, source: object) -> Iterable[tuple[tuple[int, int], float]]:
    prompts, answers = _histogram(text, PROMPTS), _histogram(text, ANSWERS)
    if not prompts or not answers:
        missing = ANSWERS if prompts else PROMPTS
        raise LengthsError(
            f"{missing} has no requests",
            where=source,
            next_step="ask a server that has answered requests, and was started without --disable-log-stats",
        )
    whole = sum(count for _, count in answers)
    return [((prompt, answer), many * count / whole) for prompt, many in prompts for answer, count in answers]


def _histogram(text: str, name: str) -> list[tuple[int, float]]:
    """A length for each bin of a Prometheus histogram that is not empty, summed over engines and models, with its count."""
    cumulated: dict[float, float] = defaultdict(float)
    for edge, count in re.findall(re.escape(name) + r'_bucket\{[^}]*le="([^"]+)"[^}]*\}\s+(\S+)', text):
        cumulated[math.inf if edge == "+Inf" else float(edge)] += float(count)
    edges = [(0.0, 0.0), *sorted(cumulated.items())]
    found = []
    for (low, before), (high, until) in pairwise(edges):
        if until > before:
            middle = low if math.isinf(high) else math.sqrt((low + 1) * high)
            found.append((max(1, round(middle)), until - before))
    return found
