"""Makes a step's sampling inputs from the requests' SamplingParams and outputs.

Rows are those of rows.py. Scalar parameters are arrays that change when a request gets its row; the wide inputs (masks,
biases, tokens seen) are made only where a request in the step needs them, as its `flags` entry says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ....passes.step_inputs import DRAW, LOGPROBS, OFF, ON, PROCESSING, mask_words
from ..steps.inputs import Frame
from .request import Request

FILLS = tuple(one.name for one in (*PROCESSING, *DRAW, *LOGPROBS))
"""The step's inputs that are filled here."""
NUMBERS = {one.name: one for one in (*PROCESSING, *DRAW) if one.shape == ("requests",) and one.name != "steps"}
"""Scalar parameters of SamplingParams, by name."""


class Sampling:
    """Sampling parameters of each row."""

    fills = FILLS

    def __init__(self, capacity: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.words = mask_words(vocab_size)
        self.numbers = {name: np.full(capacity, one.neutral, one.dtype) for name, one in NUMBERS.items()}
        self.seeds = np.zeros((capacity, 2), np.int32)
        self.steps = np.zeros(capacity, np.int32)
        self.masked = np.zeros(capacity, bool)
        self.worded = np.zeros(capacity, bool)
        """Has bad words, whose masks depend on the output."""
        self.biased = np.zeros(capacity, bool)
        self.penalized = np.zeros(capacity, bool)
        self.logprobs = np.full(capacity, -1, np.int32)
        """Number of most likely tokens that are requested besides the chosen one; -1: no log-probabilities."""

    def place(self, row: int, request: Request) -> None:
        """Copies the request's parameters into its row."""
        params = request.params
        for name in NUMBERS:
            self.numbers[name][row] = getattr(params, name)
        self.numbers["top_k"][row] = max(params.top_k, 0)  # vLLM's -1 also means off
        self.seeds[row] = np.array([request.seed & 0xFFFFFFFF, request.seed >> 32], np.uint32).view(np.int32)
        self.steps[row] = len(request.output)
        self.worded[row] = bool(params.bad_words_token_ids)
        self.masked[row] = bool(params.allowed_token_ids or params.bad_words_token_ids or params.min_tokens)
        self.biased[row] = bool(params.logit_bias)
        self.penalized[row] = (
            params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        )
        self.logprobs[row] = -1 if params.logprobs is None else self.count(params.logprobs)
        if self.penalized[row]:
            request.seen = dict.fromkeys(request.prompt, 0)
            for token in request.output:
                request.seen[token] = request.seen.get(token, 0) + 1

    def count(self, asked: int) -> int:
        """The number of tokens for a requested number of log-probabilities: vLLM's -1 means the whole vocabulary."""
        return self.vocab_size if asked == -1 else asked

    def reserve(self, rows: np.ndarray) -> None:
        """Updates the rows of requests that sample a token now."""
        self.steps[rows] += 1

    def settle(self, rows: np.ndarray, requests: Sequence[Request], tokens: np.ndarray) -> None:
        """Updates the rows for tokens that came to the host, which the requests have already."""
        for index in np.flatnonzero(self.penalized[rows]):
            token, seen = int(tokens[index]), requests[index].seen
            seen[token] = seen.get(token, 0) + 1

    def reads(self, rows: np.ndarray) -> np.ndarray:
        """Whether the inputs of each row depend on which tokens its request sampled, bool [n]."""
        return self.worded[rows] | self.penalized[rows]

    def inputs(
        self, rows: np.ndarray, requests: Sequence[Request], frame: Frame, grammar: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns the step's sampling inputs for these rows, padded to the program's sizes.

        grammar: request id -> bitmask int32 [ceil(V / 32)] of the tokens that its structured output allows next.
        """
        inputs = {name: frame.padded(name, values[rows]) for name, values in self.numbers.items()}
        inputs["seeds"] = frame.padded("seeds", self.seeds[rows])
        inputs["steps"] = frame.padded("steps", self.steps[rows])
        masked, biased = self.masked[rows].any() or bool(grammar), self.biased[rows].any()
        penalized = self.penalized[rows].any()
        inputs["flags"] = np.array([masked, biased, penalized], np.int32)
        inputs["logprobs_enabled"] = np.array(ON if (self.logprobs[rows] >= 0).any() else OFF, np.int32)
        if grammar and inputs["logprobs_enabled"]:
            inputs["grammar_mask"] = self._grammar_mask(requests, frame, grammar)
        if masked:
            inputs["allowed_mask"] = self._mask(rows, requests, frame, grammar)
        if biased:
            inputs |= self._bias(rows, requests, frame)
        if penalized:
            inputs |= self._seen(rows, requests, frame)
        return inputs

    def _grammar_mask(self, requests: Sequence[Request], frame: Frame, grammar: Mapping[str, np.ndarray]) -> np.ndarray:
        mask = frame.blank("grammar_mask")
        for index, request in enumerate(requests):
            if request.id in grammar:
                mask[index] = grammar[request.id][: self.words]
        return mask

    def _mask(
        self, rows: np.ndarray, requests: Sequence[Request], frame: Frame, grammar: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        mask = self._grammar_mask(requests, frame, grammar)
        for index, request in enumerate(requests):
            if self.masked[rows[index]]:
                self._forbid(mask[index], request)
        return mask

    def _forbid(self, mask: np.ndarray, request: Request) -> None:
        """Clears the bits of tokens that are not allowed, that would end the output too early, or that complete a bad word."""
        params = request.params
        if params.allowed_token_ids:
            mask &= bits(params.allowed_token_ids, self.words)
        ends = [words[-1] for words in params.bad_words_token_ids or () if _would_complete(words, request.output)]
        if ends:
            mask &= ~bits(ends, self.words)
        if len(request.output) < params.min_tokens and params.all_stop_token_ids:
            going_on = mask & ~bits(list(params.all_stop_token_ids), self.words)
            # Where a grammar allows only stop tokens, they stay allowed, as in vLLM's MinTokensLogitsProcessor.
            if params.structured_outputs is None or self._any(going_on):
                mask[:] = going_on

    def _any(self, mask: np.ndarray) -> bool:
        """Whether any token of the vocabulary is allowed; ignores the last word's bits past the vocabulary."""
        tail = self.vocab_size % 32
        last = int(mask[-1]) & ((1 << tail) - 1 if tail else 0xFFFFFFFF)
        return bool(mask[:-1].any()) or last != 0

    def _bias(self, rows: np.ndarray, requests: Sequence[Request], frame: Frame) -> dict[str, np.ndarray]:
        ids, values = frame.blank("bias_ids"), frame.blank("bias_values")
        for index in np.flatnonzero(self.biased[rows]):
            bias = requests[index].params.logit_bias or {}
            ids[index, : len(bias)] = list(bias)
            values[index, : len(bias)] = list(bias.values())
        return {"bias_ids": ids, "bias_values": values}

    def _seen(self, rows: np.ndarray, requests: Sequence[Request], frame: Frame) -> dict[str, np.ndarray]:
        ids, counts = frame.blank("seen_ids"), frame.blank("seen_counts")
        for index in np.flatnonzero(self.penalized[rows]):
            seen = requests[index].seen
            ids[index, : len(seen)] = list(seen)
            counts[index, : len(seen)] = list(seen.values())
        return {"seen_ids": ids, "seen_counts": counts}


def bits(tokens: Sequence[int], words: int) -> np.ndarray:
    """Returns int32 [words] with the bits of `tokens` set."""
    mask = np.zeros(words, np.uint32)
    index = np.asarray(tokens, np.int64)
    np.bitwise_or.at(mask, index // 32, np.uint32(1) << (index % 32).astype(np.uint32))
    return mask.view(np.int32)


def _would_complete(words: Sequence[int], output: Sequence[int]) -> bool:
    """Whether the output ends in all but the last token of a bad word."""
    prefix = len(words) - 1
    return prefix <= len(output) and list(output[len(output) - prefix :]) == list(words[:-1])
