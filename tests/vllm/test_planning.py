"""Plans of programs: the search beside trying everything, never worse than sizes that double, and the proof beside every single step."""

from __future__ import annotations

import json
import logging
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxhlo.runtime.core.errors import FxhloError, UnsupportedError
from fxhlo.runtime.core.targets import Target
from fxhlo.runtime.vllm.settings import Settings
from fxhlo.runtime.vllm.steps.kinds import Bucket, Limits, select
from fxhlo.runtime.vllm.steps.planning.budget import Budget
from fxhlo.runtime.vllm.steps.planning.costs import Costs
from fxhlo.runtime.vllm.steps.planning.lengths import Lengths, LengthsError, read_lengths
from fxhlo.runtime.vllm.steps.planning.load import even_load, load_of
from fxhlo.runtime.vllm.steps.planning.plan import PlanError, make_plan, read_plan, uses
from fxhlo.runtime.vllm.steps.planning.proof import prove
from fxhlo.runtime.vllm.steps.planning.search import best, doubled_sizes, ordered, stretch

LIMITS = [
    Limits(1, 1), Limits(3, 3), Limits(64, 8), Limits(100, 7), Limits(1024, 64, 8192), Limits(8192, 3), Limits(5, 2), Limits(64, 64),
    Limits(1024, 64, 100), Limits(256, 16, 256, threshold=8), Limits(256, 16, 256, threshold=8, shared=256), Limits(300, 9, 20, pooling=True),
]  # fmt: skip
COSTS = [Costs(), Costs(head=2.0), Costs(head=0.05, fixed=8, weights=560)]

limits_of_any = st.builds(
    lambda tokens, requests, longest, threshold, shared, pooling: Limits(
        max(tokens, requests), requests, longest, threshold, max(tokens, requests) if shared else 0, pooling
    ),
    st.integers(1, 300), st.integers(1, 24), st.one_of(st.none(), st.integers(2, 400)), st.sampled_from([0, 0, 1, 5, 40]), st.booleans(), st.booleans(),
)  # fmt: skip
costs_of_any = st.builds(
    Costs, head=st.floats(0, 3), fixed=st.floats(0.5, 20), weights=st.sampled_from([0.0, 32.0, 560.0])
)


def steps_of(limits: Limits) -> list[tuple[int, int]]:
    return [
        (tokens, requests)
        for requests in range(1, limits.requests + 1)
        for tokens in range(requests, limits.most(requests) + 1)
    ]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("costs", COSTS, ids=["cpu", "large vocabulary", "accelerator"])
def test_the_default_is_no_worse_than_sizes_that_double(limits: Limits, costs: Costs) -> None:
    plan, load = make_plan(limits, costs), even_load(limits)
    usual = ordered(doubled_sizes(limits), costs)
    assert sum(load.values()) == pytest.approx(1)
    assert len(plan.buckets) <= len(usual)
    assert plan.stretch <= stretch(usual, costs, load) + 1e-9
    prove(plan.buckets, limits)
    prove(usual, limits)
    assert sum(use.share * use.stretch for use in uses(plan.buckets, costs, load)) == pytest.approx(plan.stretch)


def test_a_model_with_a_large_vocabulary_gets_programs_of_few_requests_and_many_tokens() -> None:
    """Sizes that double give each prompt the logits of all requests."""
    limits, costs = Limits(1024, 64, 8192), Costs(head=4.0)
    plan = make_plan(limits, costs, budget=Budget.parse(["14"]))
    assert select(plan.buckets, Bucket.of(tokens=256, requests=1))["requests"] <= 16
    assert plan.stretch < 0.9 * stretch(ordered(doubled_sizes(limits), costs), costs, even_load(limits))


def test_where_reading_weights_takes_longer_few_programs_are_enough() -> None:
    limits = Limits(1024, 64, 8192)
    assert len(make_plan(limits, Costs(head=0.05, fixed=8, weights=560)).buckets) <= 5


@pytest.mark.parametrize(("limits", "head"), [(Limits(1024, 64, 4095), 1.5), (Limits(8192, 256, 4095), 25.0)], ids=str)
def test_no_plan_of_a_device_depends_on_the_fixed_part_of_a_step(limits: Limits, head: float) -> None:
    plans = {
        make_plan(limits, Costs(head=head, fixed=fixed, weights=560.0)).buckets for fixed in (0.0, 8.0, 32.0, 100.0)
    }
    assert len(plans) == 1


LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "layers", "vocabulary", "target", "rows"),
    [
        (LLAMA_8B, 32, 128256, "tpu-v6e", 0.96 + 0.075),  # 13 us of sampling beside 15 us of a row in the layers, and the logits
        (LLAMA_8B, 32, 128256, "tpu-v5e", 0.24 + 0.075),
        (SMOLLM2, 30, 49152, "tpu-v6e", 24.27 + 0.267),
        (SMOLLM2, 30, 49152, "cpu", 0.05 + 0.267),
        (LLAMA_8B, 32, 128256, "cuda", 1.0 + 0.075),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_row_of_logits_costs(
    sizes: dict[str, int], layers: int, vocabulary: int, target: str, rows: float
) -> None:
    model = SimpleNamespace(
        hf_text_config=SimpleNamespace(**sizes),
        runner_type="generate",
        dtype="torch.bfloat16",
        get_total_num_hidden_layers=lambda: layers,
        get_vocab_size=lambda: vocabulary,
    )
    costs = Costs.of_engine(SimpleNamespace(model_config=model), Target.parse(target))  # type: ignore[arg-type]
    assert costs.head == pytest.approx(rows, rel=0.02)


@pytest.mark.parametrize(
    "limits", [Limits(24, 4, 64), Limits(12, 12, 64), Limits(32, 8, 64), Limits(40, 8, pooling=True)], ids=str
)
def test_the_search_finds_the_best_of_all_chains(limits: Limits) -> None:
    costs, load = Costs(head=0.7), even_load(limits)
    found = {len(one.sizes): one for one in best(limits, costs, load, 4)}
    tokens = sorted({size for one in found.values() for size, _ in one.sizes} | {4, 6, 8, 12, limits.largest()})
    requests = [limits.requests] if limits.pooling else sorted({4, 6, 8, limits.requests})
    top = limits.largest(), limits.requests
    sizes = [
        (t, r) for t in tokens for r in requests
        if t <= top[0] and r <= top[1] and (t >= r or limits.pooling) and (t, r) != top
    ]  # fmt: skip
    for count in range(1, 4):
        chains = [
            chain for others in combinations(sizes, count - 1)
            if is_chain(chain := (*sorted(others), top))
        ]  # fmt: skip
        tried = min(stretch([Bucket.of(tokens=t, requests=r) for t, r in chain], costs, load) for chain in chains)
        assert found[count].stretch <= tried + 1e-9, count
        assert stretch(ordered(found[count].sizes, costs), costs, load) <= found[count].stretch + 1e-9


def is_chain(sizes: tuple[tuple[int, int], ...]) -> bool:
    return all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(sizes))


@settings(max_examples=60, deadline=None)
@given(limits_of_any, costs_of_any)
def test_every_single_step_runs_where_the_proof_says(limits: Limits, costs: Costs) -> None:
    buckets = make_plan(limits, costs).buckets
    proof = prove(buckets, limits)
    steps = steps_of(limits)
    assert proof.steps == len(steps)
    for tokens, requests in steps:
        (found,) = [one for one in proof.ranges if (tokens, requests) in one]
        assert found.bucket == select(buckets, Bucket.of(tokens=tokens, requests=requests))
        if not limits.pooling:
            assert found.bucket["tokens"] >= found.bucket["requests"] or found.bucket["tokens"] == limits.largest()


@settings(max_examples=60, deadline=None)
@given(limits_of_any, st.lists(st.tuples(st.integers(1, 300), st.integers(1, 24)), min_size=1, max_size=6))
def test_a_gap_is_an_error_that_names_a_step(limits: Limits, sizes: list[tuple[int, int]]) -> None:
    buckets = [Bucket.of(tokens=tokens, requests=requests) for tokens, requests in sizes]
    missing = [
        f"tokens={t},requests={r},"
        for t, r in steps_of(limits)
        if not any(b["tokens"] >= t and b["requests"] >= r for b in buckets)
    ]
    if not missing:
        prove(buckets, limits)
        return
    with pytest.raises(FxhloError, match="no program holds it") as raised:
        prove(buckets, limits)
    assert any(one.removesuffix(",") in raised.value.message for one in missing)


def test_the_limits_leave_out_what_no_scheduler_asks_for() -> None:
    assert Limits(1024, 4, longest=100).largest() == 400
    assert Limits(1024, 64, longest=100, threshold=8).largest() == 512
    assert [Limits(64, 8, 64, threshold=4).most(requests) for requests in (1, 2, 3)] == [64, 8, 12]
    assert [Limits(64, 8, 64, threshold=4, shared=64).most(requests) for requests in (1, 2, 8)] == [64, 64, 64]


def test_the_load_of_lengths_is_what_the_scheduler_does() -> None:
    """One prompt of 100 tokens in steps of 64, then 9 tokens of an answer: two steps with a prompt and 9 that decode."""
    costs = Costs(head=0, fixed=0)
    load = load_of(((100, 10, 1.0),), Limits(64, 1, 256), costs)
    counts = Counter({step: round(share / float(costs.of(*step)) * 1e6) for step, share in load.items()})
    assert set(counts) == {(64, 1), (36, 1), (1, 1)}
    assert counts[1, 1] / counts[64, 1] == pytest.approx(9, rel=0.05)
    pooled = load_of(((10, 0, 1.0),), Limits(64, 8, 64, pooling=True), costs)
    assert max(requests for _, requests in pooled) == 8, "the rest of a prompt, six, and the first tokens of one"
    assert {step for step in pooled if step[1] < 7 and step[0] != 64} >= {
        (10 * requests, requests) for requests in (1, 2, 4)
    }
    whole = load_of(((40, 0, 1.0),), Limits(64, 8, 64, pooling=True), costs, chunked=False)
    assert set(whole) == {(40, 1)}


def test_lengths_make_another_plan_that_pads_less() -> None:
    limits, costs = Limits(1024, 64, 8192), Costs()
    lengths = Lengths(((300, 20, 1.0), (310, 40, 1.0)), "here")
    load = load_of(lengths.pairs, limits, costs)
    assert all(requests <= tokens <= limits.most(requests) and requests <= 64 for tokens, requests in load)
    plan, even = make_plan(limits, costs, lengths), make_plan(limits, costs)
    assert plan.stretch < stretch(even.buckets, costs, load)
    assert plan == make_plan(limits, costs, lengths), "the same lengths make the same plan"


def test_a_budget_is_kept() -> None:
    limits, costs = Limits(1024, 64, 8192), Costs(seconds=0.5, program_bytes=1_000_000)
    for words, most in [(["3"], 3), (["2s"], 4), (["5MB"], 5), (["12", "3MB"], 3)]:
        assert len(make_plan(limits, costs, budget=Budget.parse(words)).buckets) <= most
    many = make_plan(limits, costs, budget=Budget.parse(["40"]))
    assert many.stretch <= make_plan(limits, costs).stretch
    assert len(make_plan(limits, costs, budget=Budget.parse(["1"])).buckets) == 1
    for word in ("no", "0", "1.5", "-3", "3 apples"):
        with pytest.raises(FxhloError, match="not understood"):
            Budget.parse([word])
    with pytest.raises(FxhloError, match="less than one program"):
        make_plan(limits, costs, budget=Budget.parse(["0.1s"]))


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_plan_is_kept_in_a_file(tmp_path: Path) -> None:
    limits = Limits(256, 16, 512, threshold=32)
    plan, file = make_plan(limits, Costs()), tmp_path / "plan.json"
    file.write_text(json.dumps(plan.to_json()))
    assert read_plan(file, limits).buckets == plan.buckets


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("not json", "is not JSON"),
        ("[1]", "is not a plan"),
        ({"fxhlo_plan": 9}, "of version 9"),
        ({"limits": None}, "other limits of the scheduler: it has none"),
        ({"limits": {"tokens": 512}}, "tokens is 256 here and 512 in the plan"),
        ({"programs": []}, "is not a list"),
        ({"programs": [{"tokens": 0, "requests": 1}]}, "is not a list"),
        ({"programs": [{"tokens": 8}]}, "is not a list"),
        ({"programs": [{"tokens": 8.5, "requests": 1}]}, "is not a list"),
        ({"programs": [{"tokens": 256, "requests": 99}]}, "larger than any step"),
        ({"programs": [{"tokens": 256, "requests": 16}] * 2}, "twice"),
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit_is_refused(changed: Any, said: str, tmp_path: Path) -> None:
    limits, file = Limits(256, 16, 512), tmp_path / "plan.json"
    stored = make_plan(limits, Costs()).to_json()
    if isinstance(changed, dict) and isinstance(changed.get("limits"), dict):
        changed = {"limits": {**stored["limits"], **changed["limits"]}}
    file.write_text(changed if isinstance(changed, str) else json.dumps({**stored, **changed}))
    with pytest.raises(PlanError, match=said) as raised:
        read_plan(file, limits)
    assert raised.value.where == str(file) and "lower-model plan" in raised.value.next_step


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No such file"):
        read_plan(tmp_path / "none.json", Limits(8, 2))


def test_lengths_from_tables(tmp_path: Path) -> None:
    for text in (
        "10,20\n30,5\n10,20\n",
        "prompt,output\n10,20\n30,5\n10,20\n",
        "output_len, input_len\n20,10\n5,30\n20,10\n",
        "prompt,output,count\n10,20,2\n30,5,1\n",
    ):
        file = tmp_path / "lengths.csv"
        file.write_text(text)
        assert read_lengths(str(file)).pairs == ((10, 20, 2.0), (30, 5, 1.0)), text
    file.write_text(json.dumps({"input_lens": [10, 30, 10], "output_lens": [20, 5, 20], "duration": 3.5}))
    assert read_lengths(str(file)).pairs == ((10, 20, 2.0), (30, 5, 1.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no requests in it"), ("prompt,output\n", "no requests in it"), ("10,20\n10,many\n", "'10,many' is not prompt,output"),
        ("10\n", "'10' is not"), ("0,5\n", "'0,5'"), ("1.5,5\n", "'1.5,5'"), ('{"input_lens": [1]}', "no lists input_lens"), ("{]", "no JSON"),
        ("INFO Received request a: params: SamplingParams(n=1)", "no tokens of requests"), ("nan,3\n", "'nan,3'"),
        ("# TYPE vllm:request_prompt_tokens histogram\n", "has no requests"),
    ],
    ids=lambda one: one[:20],
)  # fmt: skip
def test_lengths_that_are_none_are_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "lengths"
    file.write_text(text)
    with pytest.raises(LengthsError, match=said) as raised:
        read_lengths(str(file))
    assert raised.value.next_step


def test_lengths_from_a_server_that_is_not_there() -> None:
    with pytest.raises(LengthsError, match="does not answer") as raised:
        read_lengths("http://127.0.0.1:9/metrics")
    assert raised.value.where == "http://127.0.0.1:9/metrics"


def test_lengths_from_vllms_own_log(tmp_path: Path) -> None:
    from vllm.entrypoints.serve.utils.request_logger import RequestLogger
    from vllm.entrypoints.serve.utils.request_logger import logger as vllms

    file = tmp_path / "vllm.log"
    handler, level = logging.FileHandler(file), vllms.level
    vllms.addHandler(handler)
    vllms.setLevel(logging.DEBUG)
    try:
        written = RequestLogger(max_log_len=None)
        for name, prompt, answer in [("cmpl-1", 7, 3), ("cmpl-2", 1, 1), ("cmpl-3", 7, 3)]:
            written.log_inputs(name, "text [1]", list(range(prompt)), None, None, None)
            written.log_outputs(name, "answer", list(range(answer)), "length", is_streaming=True)
    finally:
        vllms.removeHandler(handler)
        vllms.setLevel(level)
    assert read_lengths(str(file)).pairs == ((1, 1, 1.0), (7, 3, 2.0))


def test_lengths_from_a_servers_metrics(tmp_path: Path) -> None:
    """As prometheus_client writes vLLM's histograms, of two engines."""
    from prometheus_client import CollectorRegistry, Histogram, generate_latest

    registry = CollectorRegistry()
    edges = [1, 2, 5, 10, 20, 50, 100]
    prompts = Histogram("vllm:request_prompt_tokens", "x", ["model_name", "engine"], buckets=edges, registry=registry)
    answers = Histogram(
        "vllm:request_generation_tokens", "x", ["model_name", "engine"], buckets=edges, registry=registry
    )
    for engine, prompt, answer in [("0", 15, 3), ("0", 15, 3), ("1", 70, 3), ("1", 300, 3)]:
        prompts.labels("m", engine).observe(prompt)
        answers.labels("m", engine).observe(answer)
    file = tmp_path / "metrics"
    file.write_bytes(generate_latest(registry))
    found = read_lengths(str(file))
    assert found.requests == 4
    assert found.pairs == ((15, 4, 2.0), (71, 4, 1.0), (100, 4, 1.0))


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_of_a_plan() -> None:
    def of(given: object) -> Settings:
        return Settings.of(SimpleNamespace(additional_config=given))  # type: ignore[arg-type]

    assert of({}).plan is None
    assert of({"fxhlo": {"plan": "plan.json"}}).plan == "plan.json"
    assert of({"fxhlo": {"lengths": "a.csv", "budget": "12"}}).budget == "12"
    assert of({"fxhlo": {"attention_data_parallel": 4}}).attention_data_parallel == 4
    for wrong, said in [
        ({"plans": "x"}, "did you mean plan"), ({"plan": 3}, "is a text"), ("x", "mapping"),
        ({"plan": "x", "lengths": "y"}, "give either"), ({"attention_data_parallel": "2"}, "is a number of groups of devices"),
        ({"attention_data_parallel": 0}, "from 1 on|not 0"),
    ]:  # fmt: skip
        with pytest.raises(UnsupportedError, match=said):
            of({"fxhlo": wrong})
