"""vLLM's own engine and poolers over our steps give what transformers gives, for each kind of pooling model and each task.

The programs are run in eager torch (eager_steps.py); tests/engine/test_pooling.py has them compiled.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm import LLM, PoolingParams
from vllm.config import PoolerConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import LateInteractionParams

from fxhlo.runtime.vllm import worker

sys.path.insert(0, str(Path(__file__).parent))
from eager_steps import EagerSteps
from pooling_models import DOCUMENTS, LENGTHS, MODELS, QUERY, prompt, text

PROMPTS = [prompt(length) for length in LENGTHS]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
QUICK = (
    "bert",
    "bert_tokens",
    "modernbert",
    "xlm_roberta_reranker",
    "qwen3",
    "qwen3_classifier",
)
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.conformance)
    for name in MODELS
    if name != "qwen3_generator"
]
Engine = Callable[..., LLM]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-P", str(Path(__file__).with_name("pooling_models.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def engine(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """engine(name, **arguments) -> LLM whose programs are EagerSteps; in this process."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(worker, "prepare", EagerSteps)
    started: list[LLM] = []

    def start(name: str, **arguments: Any) -> LLM:
        sizes = {"max_model_len": 250, "max_num_seqs": 4, "kv_cache_memory_bytes": 32 << 20, "dtype": "float32"}
        llm = LLM(str(models / name), runner="pooling", **(sizes | arguments))
        started.append(llm)
        return llm

    yield start
    for llm in started:
        llm.llm_engine.engine_core.shutdown()


def pooled(llm: LLM, prompts: list[list[int]], params: Any = None, **asked: Any) -> list[torch.Tensor]:
    given = [{"prompt_token_ids": tokens} for tokens in prompts]
    params, task = params or PoolingParams(**asked), llm.pooling_task
    return [one.outputs.data for one in llm.encode(given, pooling_params=params, pooling_task=task, use_tqdm=False)]


def alike(found: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.float(), other, **TOLERANCE)


def references(models: Path, name: str) -> list[dict[str, torch.Tensor]]:
    read = json.loads((models / name / "reference.json").read_text())
    return [{key: torch.tensor(value) for key, value in one.items()} for one in read]


normalized = partial(torch.nn.functional.normalize, dim=-1)
POOLED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "CLS": lambda hidden: hidden[0],
    "MEAN": lambda hidden: hidden.mean(0),
    "LAST": lambda hidden: hidden[-1],
}


@pytest.mark.parametrize("name", NAMES)
def test_each_task_of_a_model_is_what_transformers_gives(name: str, engine: Engine, models: Path) -> None:
    """Prompts of 1 to 200 tokens, together and alone."""
    right, llm = references(models, name), engine(name)
    if "hidden" in right[0]:
        check_embeddings(llm, [one["hidden"] for one in right])
        return
    logits = [one["logits"] for one in right]
    alike(pooled(llm, PROMPTS, use_activation=False), logits)
    if name != "qwen2_reward":  # whose numbers are no probabilities
        activated = [one.softmax(-1) if one.shape[-1] > 1 else one.sigmoid() for one in logits]
        alike(pooled(llm, PROMPTS), activated)


def check_embeddings(llm: LLM, hidden: list[torch.Tensor]) -> None:
    if llm.pooling_task == "token_embed":
        wanted = hidden
    else:
        wanted = [POOLED[llm.model_config.pooler_config.get_seq_pooling_type()](one) for one in hidden]
        alike(pooled(llm, PROMPTS, use_activation=False), wanted)
    alike(pooled(llm, PROMPTS), [normalized(one) for one in wanted])
    for tokens, one in zip(PROMPTS[1:4:2], wanted[1:4:2], strict=True):
        alike(pooled(llm, [tokens]), [normalized(one)])


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_hidden_states_of_all_tokens(name: str, engine: Engine, models: Path) -> None:
    llm = engine(name, pooler_config=PoolerConfig(task="token_embed"))
    check_embeddings(llm, [one["hidden"] for one in references(models, name)])


def test_a_cross_encoder_is_told_of_two_texts(engine: Engine, models: Path) -> None:
    right, llm = references(models, "bert_classifier"), engine("bert_classifier")
    second = [{"compressed_token_type_ids": len(tokens) // 3} for tokens in PROMPTS]
    params = [PoolingParams(use_activation=False, extra_kwargs=one) for one in second]
    params[1] = PoolingParams(use_activation=False)  # a text alone among pairs
    wanted = [one["logits of two texts"] for one in right]
    assert (wanted[2] - right[2]["logits"]).abs().max() > 0.01
    wanted[1] = right[1]["logits"]
    alike(pooled(llm, PROMPTS, params), wanted)


def test_scores_of_pairs(engine: Engine, models: Path) -> None:
    """As vLLM's `score` and its server tokenize them."""
    read = json.loads((models / "xlm_roberta_reranker" / "pairs.json").read_text())
    llm = engine("xlm_roberta_reranker")
    found = llm.score(text(QUERY), [text(tokens) for tokens in DOCUMENTS], use_tqdm=False)
    right = [torch.tensor(one["logits"]).sigmoid().item() for one in read]
    assert [one.outputs.score for one in found] == pytest.approx(right, abs=1e-4)


def test_prompts_in_chunks_from_a_cache_and_preempted(engine: Engine, models: Path) -> None:
    """A decoder's prompts take several steps; a pooler of all tokens collects their hidden states, also where blocks run out."""
    wanted = [normalized(one["hidden"]) for one in references(models, "qwen3")]
    tight = {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 20, "enable_prefix_caching": True}
    llm = engine("qwen3", pooler_config=PoolerConfig(task="token_embed"), **tight)
    alike(pooled(llm, [*PROMPTS[::-1], *PROMPTS[::-1]]), [*wanted[::-1], *wanted[::-1]])
    assert max(bucket["tokens"] for bucket in EagerSteps.last.used) == 32


def test_a_prompt_that_is_cached_takes_one_step(engine: Engine, models: Path) -> None:
    wanted = [normalized(one["hidden"][-1]) for one in references(models, "qwen3")]
    llm = engine("qwen3", max_num_batched_tokens=32, enable_prefix_caching=True)
    alike(pooled(llm, PROMPTS[-1:]), wanted[-1:])
    steps = len(EagerSteps.last.used)
    alike(pooled(llm, PROMPTS[-1:]), wanted[-1:])
    assert (steps, len(EagerSteps.last.used)) == (7, 8)


def test_dimensions(engine: Engine, models: Path) -> None:
    """Embeddings that are cut off (Matryoshka) are normalized afterwards; a batch may ask for different lengths."""
    right = [one["hidden"][-1] for one in references(models, "qwen3")]
    llm = engine("qwen3", hf_overrides={"is_matryoshka": True})
    params = [PoolingParams(dimensions=size) for size in (16, 64, 1, None, 33)]
    wanted = [normalized(one[: each.dimensions]) for one, each in zip(right, params, strict=True)]
    alike(pooled(llm, PROMPTS, params), wanted)
    with pytest.raises(VLLMValidationError, match="in range \\[1, 64\\], got 65"):
        pooled(llm, PROMPTS[:1], dimensions=65)


@pytest.mark.conformance
def test_modules_of_sentence_transformers(engine: Engine, models: Path) -> None:
    """A mean, two dense layers with their activations, and a normalization."""
    shutil.copytree(models / "bert", models / "sentences")
    first, second = torch.nn.Linear(64, 24), torch.nn.Linear(24, 12, bias=False)
    written: dict[str, tuple[str, dict[str, Any]]] = {
        "": ("Transformer", {}),
        "1_Pooling": ("Pooling", {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}),
        "2_Dense": ("Dense", _stored(first, models / "sentences" / "2_Dense", "torch.nn.modules.activation.Tanh")),
        "3_Dense": ("Dense", _stored(second, models / "sentences" / "3_Dense", "torch.nn.modules.linear.Identity")),
        "4_Normalize": ("Normalize", {}),
    }
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, (kind, _) in written.items()]
    (models / "sentences" / "modules.json").write_text(json.dumps(modules))
    for path, (_, config) in list(written.items())[1:]:
        (models / "sentences" / path).mkdir(exist_ok=True)
        (models / "sentences" / path / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        wanted = [normalized(second(first(one["hidden"].mean(0)).tanh())) for one in references(models, "bert")]
    alike(pooled(engine("sentences"), PROMPTS), wanted)


def _stored(layer: torch.nn.Linear, folder: Path, activation: str) -> dict[str, Any]:
    """Writes the layer as sentence-transformers does; its config."""
    folder.mkdir()
    save_file(
        {f"linear.{name}": tensor.detach() for name, tensor in layer.named_parameters()}, folder / "model.safetensors"
    )
    sizes = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    return sizes | {"activation_function": activation}


def test_late_interaction_scores_documents_against_a_kept_query(engine: Engine, models: Path) -> None:
    right, llm = [normalized(one["hidden"]) for one in references(models, "colbert")], engine("colbert")
    query, documents = 2, [0, 3, 4]

    def params(mode: str) -> PoolingParams:
        return PoolingParams(late_interaction_params=LateInteractionParams(mode, "a query", len(documents)))

    pooled(llm, [PROMPTS[query]], params("cache_query"))
    found = pooled(llm, [PROMPTS[index] for index in documents], params("score_doc"))
    wanted = [(right[query] @ right[index].T).amax(1).sum() for index in documents]
    alike([one.reshape(()) for one in found], wanted)


def test_a_model_that_generates_answers_yes_or_no(engine: Engine, models: Path) -> None:
    """As Qwen3's rerankers: the classifier is made of two rows of the head, which is then gone."""
    right = references(models, "qwen3_generator")
    converted = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["w5", "w9"],
        "is_original_qwen3_reranker": True,
    }
    llm = engine("qwen3_generator", hf_overrides=converted)
    wanted = [(one["vocabulary"][9] - one["vocabulary"][5]).sigmoid()[None] for one in right]
    alike(pooled(llm, PROMPTS), wanted)


def test_a_model_that_generates_embeds(engine: Engine, models: Path) -> None:
    llm = engine("qwen3_generator")
    assert set(llm.llm_engine.get_supported_tasks()) == {"embed", "token_embed"}
    (found,) = pooled(llm, PROMPTS[2:3])
    assert found.shape == (64,)
    torch.testing.assert_close(found.norm(), torch.tensor(1.0))


@pytest.mark.parametrize(("longest", "tokens"), [(256, 1024), (2048, 2048)])
def test_a_step_has_room_for_the_longest_text(models: Path, longest: int, tokens: int) -> None:
    """An encoder reads a text in one step; vLLM's default for a step is larger than this machine has a use for."""
    sizes = {"max_position_embeddings": longest}
    config = EngineArgs(model=str(models / "bert"), runner="pooling", hf_overrides=sizes).create_engine_config()
    assert not config.scheduler_config.enable_chunked_prefill
    assert config.scheduler_config.max_num_batched_tokens == tokens
