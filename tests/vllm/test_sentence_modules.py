"""What a sentence-transformers folder says and vLLM's poolers do not compute is refused by name, from JSON files alone, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.sentence_modules import check_modules

TRANSFORMER = ("sentence_transformers.models.Transformer", "", None)
POOLING = "sentence_transformers.models.Pooling"
MEAN = (
    POOLING,
    "1_Pooling",
    {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
)
NORMALIZE = ("sentence_transformers.models.Normalize", "3_Normalize", None)


def dense(activation: Any = "torch.nn.modules.activation.Tanh", folder: str = "2_Dense", **more: Any) -> Any:
    config = {"in_features": 32, "out_features": 24, "bias": False, "activation_function": activation, **more}
    return "sentence_transformers.models.Dense", folder, config


def pooling(**modes: Any) -> Any:
    return POOLING, "1_Pooling", {"word_embedding_dimension": 32, **modes}


Folder = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Folder:
    """model(*modules, **fields) -> vLLM's config of the model, as far as `check_modules` reads it."""

    def made(*modules: Any, weights: bool = True, asked: bool = False, **fields: Any) -> Any:
        named = [{"idx": at, "name": str(at), "path": path, "type": kind} for at, (kind, path, _) in enumerate(modules)]
        (tmp_path / "modules.json").write_text(json.dumps(named))
        for _, path, config in modules:
            if config is not None:
                (tmp_path / path).mkdir()
                (tmp_path / path / "config.json").write_text(json.dumps(config))
                if weights:
                    save_file({"linear.weight": torch.zeros(24, 32)}, tmp_path / path / "model.safetensors")
        sources = {"seq_pooling_type": "user"} if asked else {}
        usual = {"architecture": "BertModel", "score_type": "bi-encoder", "_pooler_config_sources": sources}
        return SimpleNamespace(model=str(tmp_path), **usual | fields)

    return made


WHOLE: list[tuple[Any, ...]] = [
    (TRANSFORMER, MEAN),
    (TRANSFORMER, pooling(pooling_mode="lasttoken", include_prompt=True), NORMALIZE),
    (TRANSFORMER, MEAN, dense(), dense("torch.nn.modules.linear.Identity", "3_Dense"), NORMALIZE),
    (TRANSFORMER, MEAN, dense("torch.nn.modules.activation.GELU")),
    (TRANSFORMER, ("sentence_transformers.models.Dropout", "0_Dropout", None), MEAN),
    (
        TRANSFORMER,
        ("pylate.models.Dense.Dense", *dense("torch.nn.modules.linear.Identity")[1:]),
    ),
]
LEFT_OUT: list[tuple[tuple[Any, ...], str]] = [
    ((pooling(pooling_mode_max_tokens=True),), "the pooling max_tokens"),
    ((pooling(pooling_mode_mean_sqrt_len_tokens=True),), "the pooling mean_sqrt_len_tokens"),
    ((pooling(pooling_mode="weightedmean"),), "the pooling weightedmean"),
    ((pooling(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True),), "the pooling cls_token and mean_tokens"),
    (
        (MEAN, ("sentence_transformers.models.LayerNorm", "2_LayerNorm", None)),
        r"the module sentence_transformers\.models\.LayerNorm",
    ),
    ((MEAN, dense("torch.nn.modules.activation.Softplus")), r"the activation .*Softplus of 2_Dense"),
    ((MEAN, dense(3)), "the activation 3 of 2_Dense"),
    ((MEAN, dense(use_residual=True)), "the residual of 2_Dense"),
    ((MEAN, NORMALIZE, dense()), "the order of its modules"),
    ((MEAN, dense(out_features=12)), r"2_Dense, whose weights are \[24, 32\] and should be \[12, 32\]"),
    ((MEAN, dense(bias=True)), "the bias of 2_Dense"),
]


@pytest.mark.parametrize("modules", WHOLE, ids=len)
def test_modules_that_vllm_has(modules: tuple[Any, ...], model: Folder) -> None:
    check_modules(model(*modules))


@pytest.mark.parametrize(("modules", "said"), LEFT_OUT, ids=lambda value: value if isinstance(value, str) else "")
def test_what_vllm_would_leave_out(modules: tuple[Any, ...], said: str, model: Folder) -> None:
    with pytest.raises(UnsupportedError, match=f"vLLM leaves out .*{said}"):
        check_modules(model(TRANSFORMER, *modules))


def test_a_dense_layer_without_weights(model: Folder) -> None:
    with pytest.raises(UnsupportedError, match="2_Dense, which has no weights") as caught:
        check_modules(model(TRANSFORMER, MEAN, dense(), weights=False))
    assert "save the folder again" in str(caught.value)
    assert "--pooler-config" not in str(caught.value)


def test_a_pooling_of_the_users_own(model: Folder) -> None:
    check_modules(model(TRANSFORMER, pooling(pooling_mode_max_tokens=True), asked=True))


@pytest.mark.parametrize("field", [{"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
                                   {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}])  # fmt: skip
def test_a_sigmoid_of_several_labels(field: dict[str, Any], model: Folder) -> None:
    def scoring(**more: Any) -> Any:
        return model(score_type="cross-encoder", hf_config=SimpleNamespace(**{"num_labels": 3, **field, **more}))

    with pytest.raises(UnsupportedError, match=r"Sigmoid for 3 labels, and vLLM computes a softmax") as caught:
        check_modules(scoring())
    assert "multi_label_classification" in str(caught.value)
    check_modules(scoring(num_labels=1))
    check_modules(scoring(problem_type="multi_label_classification"))


def test_an_engine_is_refused(model: Folder, tmp_path: Path) -> None:
    """And with the pooling that the error names it is not."""
    model(TRANSFORMER, pooling(pooling_mode_max_tokens=True))
    sizes = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    transformers.BertConfig(**sizes, architectures=["BertModel"]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="the pooling max_tokens"):
        engine_config(str(tmp_path), dtype="float32")
    assert engine_config(str(tmp_path), dtype="float32", pooler_config={"seq_pooling_type": "MEAN"})
