"""Check that a tokenizer is complete and belongs to its text encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mu.core.errors import ConfigError, ModelError, quoted, titled

STUB = 0.5
"""A tokenizer with a smaller share of its model's tokens is a stub. Some tables are padded by hundreds."""


def check_vocabulary(tokenizer: Any, embeddings: int, what: str) -> None:
    """Raise `ModelError` for a ``tokenizer`` that lacks tokens, or has more than its model has ``embeddings``.

    transformers silently makes a stub of two tokens if files are missing. ``what`` names the tokenizer and its model.
    """
    if len(tokenizer) > embeddings:
        raise ModelError(
            f"{what} has {len(tokenizer)} tokens and the model {embeddings} embeddings: add the embeddings of the new "
            "tokens, or copy the tokenizer that belongs to this model"
        )
    if len(tokenizer) < STUB * embeddings:
        raise ModelError(f"{what} is incomplete ({len(tokenizer)} of {embeddings} tokens): copy its folder again")


def check_concepts(concepts: Iterable[str], tokenizer: Any, length: int, name: str) -> None:
    """Raise `ConfigError` for a concept of which the text encoder of ``name`` would read only the beginning.

    ``length`` is the number of tokens of a prompt, with its start and end."""
    for concept in concepts:
        tokens = len(tokenizer(concept, add_special_tokens=False, verbose=False).input_ids)
        if tokens > length - 2:
            raise ConfigError(
                f"the concept {quoted(str(concept))} has {tokens} tokens, and the text encoder of {titled(name)} reads "
                f"{length - 2}: give a shorter one"
            )


def has_room(tokenizer: Any) -> bool:
    """Whether ``model_max_length`` is a number that leaves room for a word between start and end."""
    length = tokenizer.model_max_length
    return isinstance(length, int | float) and not isinstance(length, bool) and length >= 3


def check_length(tokenizer: Any, limit: int, what: str) -> None:
    """Raise `ModelError` unless prompts of ``tokenizer`` have 3 .. ``limit`` tokens, with start and end.

    ``limit`` is the text encoder's maximum.
    """
    if not has_room(tokenizer) or tokenizer.model_max_length > limit:
        raise ModelError(
            f"{what} does not fit its text encoder, which reads {limit} tokens: set model_max_length to {limit} in its "
            "tokenizer_config.json"
        )
