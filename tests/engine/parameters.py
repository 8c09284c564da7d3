"""Every field of vLLM's SamplingParams: what proves that it works here, or that it is refused.

A field that a new vLLM brings is in none of the tables, and tests/engine/test_parameters.py fails until somebody looks at it.
"""

from __future__ import annotations

from typing import Any

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
RANDOM: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 12, "ignore_eos": True}
FIRST: dict[str, Any] = {"max_tokens": 1, "logprobs": 40}
"""One token: with logprobs_mode processed_logprobs, its values show what temperature and filters made of the distribution."""
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
CHOICES = ["yes", "no", "perhaps"]

COMPARED: dict[str, dict[str, dict[str, Any]]] = {
    "presence_penalty": {"": {**GREEDY, "presence_penalty": 1.5}},
    "frequency_penalty": {"": {**GREEDY, "frequency_penalty": 1.5}},
    "repetition_penalty": {"": {**GREEDY, "repetition_penalty": 1.4}},
    "temperature": {"zero": GREEDY, "shown": {**FIRST, "temperature": 0.6}},
    "top_p": {"tiny": {**RANDOM, "top_p": 1e-6}, "shown": {**FIRST, "top_p": 0.8}},
    "top_k": {"one": {**RANDOM, "top_k": 1}, "shown": {**FIRST, "top_k": 7}, "shown, off": {**FIRST, "top_k": -1}},
    "min_p": {"one": {**RANDOM, "min_p": 1.0}, "shown": {**FIRST, "min_p": 0.05}},
    "stop": {
        "one": {**GREEDY, "max_tokens": 40, "stop": "the"},
        "several": {**GREEDY, "max_tokens": 40, "stop": ["\n", "is"]},
    },
    "stop_token_ids": {"": {**GREEDY, "max_tokens": 40, "stop_token_ids": list(range(300))}},
    "include_stop_str_in_output": {"": {**GREEDY, "max_tokens": 40, "stop": "the", "include_stop_str_in_output": True}},
    "ignore_eos": {"": {**GREEDY, "max_tokens": 40}, "not": {**GREEDY, "ignore_eos": False, "max_tokens": 40}},
    "max_tokens": {"": {**GREEDY, "max_tokens": 3}, "none": {**GREEDY, "max_tokens": None, "stop_token_ids": list(range(2000))}},
    "min_tokens": {
        "": {**GREEDY, "min_tokens": 8, "stop_token_ids": list(range(300))},
        "mixed": {
            **GREEDY, "max_tokens": 24, "min_tokens": 8, "stop": "the", "bad_words": ["is a", "def"], "logprobs": 4,
            "presence_penalty": 0.7, "repetition_penalty": 1.2,
        },
    },
    "logprobs": {"none but its own": {**GREEDY, "logprobs": 0}, "five": {**GREEDY, "logprobs": 5}},
    "prompt_logprobs": {
        "": {**GREEDY, "prompt_logprobs": 3},
        "mixed": {**RANDOM, "top_k": 1, "prompt_logprobs": 5, "logprobs": 5, "frequency_penalty": 0.8, "bad_words": ["return"]},
    },
    "flat_logprobs": {"": {**GREEDY, "logprobs": 3, "prompt_logprobs": 2, "flat_logprobs": True}},
    "detokenize": {"": {**GREEDY, "detokenize": False}},
    "skip_special_tokens": {"": {**GREEDY, "skip_special_tokens": False, "logit_bias": {"2": 100.0}}},
    "spaces_between_special_tokens": {
        "": {**GREEDY, "skip_special_tokens": False, "spaces_between_special_tokens": False, "logit_bias": {"2": 100.0}}
    },
    "output_kind": {"": {**GREEDY, "output_kind": "FINAL_ONLY"}},
    "stream_interval": {"": {**GREEDY, "stream_interval": 4}},
    "structured_outputs": {
        "json": {**GREEDY, "max_tokens": 40, "ignore_eos": False, "structured_outputs": {"json": SCHEMA}},
        "regex": {**GREEDY, "ignore_eos": False, "structured_outputs": {"regex": r"[a-f]{3}-\d{2}"}},
        "choice": {**GREEDY, "ignore_eos": False, "structured_outputs": {"choice": CHOICES}},
        "grammar": {
            **GREEDY, "ignore_eos": False, "structured_outputs": {"grammar": 'root ::= "a" ("b" | "c") number\nnumber ::= "1" | "2"'},
        },
        "json_object": {**GREEDY, "max_tokens": 30, "structured_outputs": {"json_object": True}, "ignore_eos": False},
        "with a bias and penalties": {
            **GREEDY, "ignore_eos": False, "structured_outputs": {"choice": CHOICES}, "logit_bias": {"5": 50.0}, "presence_penalty": 1.0,
        },
        "mixed": {
            **GREEDY, "max_tokens": 40, "ignore_eos": False, "structured_outputs": {"json": SCHEMA}, "bad_words": ["Paris"], "min_tokens": 3,
            "logprobs": 2, "repetition_penalty": 1.3,
        },
        "random": {**RANDOM, "max_tokens": 40, "ignore_eos": False, "top_k": 1, "structured_outputs": {"json": SCHEMA}},
    },
    "logit_bias": {"": {**GREEDY, "logit_bias": {"1234": 8.0, "28": -100.0}}, "wins": {**GREEDY, "logit_bias": {"1234": 100.0}},
                   "mixed": {**GREEDY, "logit_bias": {"1234": 4.0}, "allowed_token_ids": list(range(500, 2000)), "frequency_penalty": 0.8,
                             "prompt_logprobs": 2, "logprobs": 3}},
    "allowed_token_ids": {
        "": {**GREEDY, "allowed_token_ids": list(range(500, 900))},
        "mixed": {**GREEDY, "allowed_token_ids": list(range(500, 900)), "min_tokens": 4, "stop_token_ids": list(range(500, 700))},
    },
    "bad_words": {"": {**GREEDY, "bad_words": ["the", "is a", "def", "return"]}},
    "repetition_detection": {
        "": {**GREEDY, "max_tokens": 60, "logit_bias": {"1234": 100.0},
             "repetition_detection": {"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 3}},
    },
    "skip_reading_prefix_cache": {"": {**GREEDY, "skip_reading_prefix_cache": True}},
    "extra_args": {"": {**GREEDY, "extra_args": {"nobody": "reads this"}}},
    "watermarking": {"": {**GREEDY, "watermarking": True}},
    "routed_experts_prompt_start": {"": {**GREEDY, "routed_experts_prompt_start": 2}},
}  # fmt: skip
"""Field -> requests whose answers are those of vLLM's own CPU backend. The last three do nothing without an option of the
engine's that is refused at its start; vLLM itself then leaves them alone in the same way."""

TESTED: dict[str, str] = {
    "n": "test_parameters.py::test_several_outputs_of_one_request",
    "seed": "test_sampling.py::test_a_seeded_request_is_the_same_alone_and_in_a_batch",
}
"""Field -> the test that it has to itself: random numbers are not vLLM's."""

REFUSED: dict[str, dict[str, Any]] = {
    "prompt_logprob_token_ids": {"prompt_logprob_token_ids": [[1, 2]]},
    "prompt_logprob_start": {"prompt_logprob_token_ids": [[1, 2]], "prompt_logprob_start": 1},
    "logprob_token_ids": {"logprob_token_ids": [1, 2]},
    "thinking_token_budget": {"thinking_token_budget": 5},
    "trace_decode_token_ids": {"trace_decode_token_ids": [1, 2]},
}
"""Field -> a request that asks for it, and is answered with an error that names it."""

INTERNAL = {"skip_clone", "output_text_buffer_length"}
"""Not the user's to set."""
