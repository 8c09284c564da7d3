"""`vllm serve` of models that embed, score and classify: the endpoints answer with transformers' numbers, by compiled programs.

tests/vllm/test_pooling.py has each kind of model, in eager torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Server

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))
from pooling_models import DOCUMENTS, LENGTHS, QUERY, prompt, text

PROMPTS = [prompt(length) for length in LENGTHS]
SIZES = ("--max-model-len", "250", "--max-num-seqs", "4", "--dtype", "float32", "--served-model-name", "tiny")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    script = Path(__file__).parents[1] / "vllm" / "pooling_models.py"
    command = [sys.executable, "-P", str(script), str(folder), "bert", "xlm_roberta_reranker"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def embedder(models: Path) -> Iterator[Server]:
    with Server(models / "bert", *SIZES) as running:
        running.wait()
        yield running


@pytest.fixture(scope="module")
def reranker(models: Path) -> Iterator[Server]:
    with Server(models / "xlm_roberta_reranker", *SIZES) as running:
        running.wait()
        yield running


def reference(models: Path, name: str, file: str = "reference") -> Any:
    return json.loads((models / name / f"{file}.json").read_text())


def first_tokens(models: Path, name: str, file: str = "reference") -> list[np.ndarray]:
    """The normalized hidden state of each text's first token, which BERT's embedding is."""
    found = [np.array(one["hidden"][0]) for one in reference(models, name, file)]
    return [one / np.linalg.norm(one) for one in found]


def test_embeddings(embedder: Server, models: Path) -> None:
    """Of tokens and of texts, many and one; another encoding; dimensions that the model does not have are a 400."""
    for tokens in (PROMPTS, PROMPTS[2]):
        data = embedder.post("/v1/embeddings", {"model": "tiny", "input": tokens})["data"]
        wanted = first_tokens(models, "bert") if tokens is PROMPTS else [first_tokens(models, "bert")[2]]
        np.testing.assert_allclose([one["embedding"] for one in data], wanted, **CLOSE)
    texts = [text(one) for one in DOCUMENTS]
    data = embedder.post("/v1/embeddings", {"model": "tiny", "input": texts})["data"]
    np.testing.assert_allclose([one["embedding"] for one in data], first_tokens(models, "bert", "documents"), **CLOSE)
    with pytest.raises(urllib.error.HTTPError) as caught:
        embedder.post("/v1/embeddings", {"model": "tiny", "input": "w5", "dimensions": 16})
    assert caught.value.code == 400
    assert "Matryoshka" in caught.value.read().decode()


def test_pooling_without_normalization(embedder: Server, models: Path) -> None:
    data = embedder.post("/pooling", {"model": "tiny", "input": PROMPTS, "use_activation": False})["data"]
    right = [one["hidden"][0] for one in reference(models, "bert")]
    np.testing.assert_allclose([one["data"] for one in data], right, **CLOSE)


def test_scores_of_an_embedder_are_cosines(embedder: Server, models: Path) -> None:
    texts = [text(one) for one in DOCUMENTS]
    data = embedder.post("/score", {"model": "tiny", "text_1": texts[0], "text_2": texts})["data"]
    right = first_tokens(models, "bert", "documents")
    np.testing.assert_allclose([one["score"] for one in data], [right[0] @ one for one in right], **CLOSE)


def test_scores_and_ranks_of_a_cross_encoder(reranker: Server, models: Path) -> None:
    pairs = reference(models, "xlm_roberta_reranker", "pairs")
    right = [1 / (1 + np.exp(-one["logits"][0])) for one in pairs]
    texts = [text(one) for one in DOCUMENTS]
    data = reranker.post("/score", {"model": "tiny", "text_1": text(QUERY), "text_2": texts})["data"]
    np.testing.assert_allclose([one["score"] for one in data], right, **CLOSE)
    ranked = reranker.post("/rerank", {"model": "tiny", "query": text(QUERY), "documents": texts})["results"]
    assert [one["index"] for one in ranked] == np.argsort(right)[::-1].tolist()
    np.testing.assert_allclose([one["relevance_score"] for one in ranked], sorted(right, reverse=True), **CLOSE)
    data = reranker.post("/classify", {"model": "tiny", "input": PROMPTS})["data"]
    logits = [one["logits"][0] for one in reference(models, "xlm_roberta_reranker")]
    np.testing.assert_allclose([one["probs"][0] for one in data], 1 / (1 + np.exp(-np.array(logits))), **CLOSE)
