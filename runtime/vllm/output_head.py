"""A model's projection from hidden states to logits: tied to the embedding, or of its own.

Comes in: vLLM's model. Goes out: the same, whose head is the embedding where config.json ties it, and another tensor where the files have one.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from . import compat

HEAD = "lm_head"
"""A checkpoint's name for the projection from hidden states to logits, and the attribute of a model with its own."""


def add_head(model: nn.Module, like: nn.Module) -> None:
    """Adds a head without weights to `model` if `like` got one of its own from its checkpoint."""
    embedding = only_embedding(model)
    if getattr(like, HEAD, None) is None or getattr(model, HEAD, None) is not None or embedding is None:
        return
    use_head(model, own_head(embedding), embedding)


def tie_as(model: nn.Module, like: nn.Module) -> None:
    """Ties the parameters of `model` that are one parameter in `like`, such as a head that equals the embedding.

    Modules that a loader made, and that `model` lacks, are a pooler's, which is no part of a step.
    """
    have = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    first: dict[int, str] = {}
    for name, parameter in like.named_parameters(remove_duplicate=False):
        shared = first.setdefault(id(parameter), name)
        if shared != name and {shared, name} <= have:
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, model.get_parameter(shared))


def settle_tie(model: nn.Module, config: Any) -> None:
    """Makes the head's weight the embedding's, or one of its own, as config.json says and vLLM's class does not read: some have always two
    (DeepSeek, gpt-oss), some always one (LFM2, Zamba 2). vLLM has untied the config before where the files have a head."""
    head, embeddings = getattr(model, HEAD, None), _embeddings(model)
    if not isinstance(head, compat.ParallelLMHead) or len(embeddings) != 1:
        return
    (embedding,) = embeddings
    asked, tied = getattr(config, "tie_word_embeddings", None), head.weight is embedding.weight
    if asked and not tied and head.weight.shape == embedding.weight.shape:
        head.weight = embedding.weight
    elif asked is False and tied:
        head.weight = own_head(embedding).weight


def only_embedding(model: nn.Module) -> Any:
    """The model's token embedding if it has exactly one and no head; else None."""
    found = _embeddings(model)
    heads = any(isinstance(module, compat.ParallelLMHead) for module in model.modules())
    return found[0] if len(found) == 1 and not heads else None


def _embeddings(model: nn.Module) -> list[Any]:
    """The model's embeddings of tokens, without heads."""
    return [
        module
        for module in model.modules()
        if isinstance(module, compat.VocabParallelEmbedding) and not isinstance(module, compat.ParallelLMHead)
    ]


def own_head(embedding: Any) -> Any:
    """Makes a head of the embedding's size and dtype, its weight uninitialized."""
    sizes = embedding.org_vocab_size, embedding.embedding_dim
    return compat.ParallelLMHead(*sizes, params_dtype=embedding.weight.dtype, prefix=HEAD)


def use_head(model: nn.Module, head: nn.Module, embedding: nn.Module) -> None:
    """Computes logits by `head` wherever the model passes `embedding` to its LogitsProcessor."""

    def instead(_: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        return (head, *args[1:]) if args and args[0] is embedding else args

    setattr(model, HEAD, head)
    for module in model.modules():
        if isinstance(module, compat.LogitsProcessor):
            module.register_forward_pre_hook(instead)
