"""A text encoder of a diffusion model: its tokenizer and its module."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mu.core.errors import quoted

log = logging.getLogger("mu")


@dataclass
class TextEncoder:
    """A tokenizer and a text encoder; ``component`` is the name of ``module`` in parameter names.

    ``causal``: a position depends only on itself and earlier ones, so prompts that begin equally share embeddings."""

    component: str
    tokenizer: Any
    module: Any
    causal: bool = True
    soft: bool = False
    """Whether it reads embeddings that are given, in place of its tokens' own: see `reading`."""
    _cut: set[str] = field(default_factory=set)
    """Prompts whose cut was logged already."""

    @property
    def length(self) -> int:
        """Number of tokens of a prompt, with padding."""
        return int(self.tokenizer.model_max_length)

    @property
    def depth(self) -> int:
        return int(self.module.config.num_hidden_layers)

    @property
    def end(self) -> int:
        """Id of the token that ends a prompt."""
        return int(self.tokenizer.eos_token_id)

    @property
    def special(self) -> set[int]:
        """Ids of tokens that are not words, such as start, end and padding."""
        return set(self.tokenizer.all_special_ids)

    def words(self, text: str) -> list[int]:
        """Token ids of ``text`` alone, without start, end or padding."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def fits(self, prompt: str) -> bool:
        """Whether ``prompt`` is read whole."""
        return len(self.tokenizer(prompt, truncation=False, verbose=False).input_ids) <= self.length

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (b, n), padded. A prompt that is too long is cut, with one warning that quotes the lost part."""
        for prompt in prompts:
            if prompt not in self._cut:
                ids = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
                if len(ids) > self.length:
                    self._cut.add(prompt)
                    lost = self.tokenizer.decode(ids[self.length - 1 : -1])
                    log.warning(
                        "the text encoder reads %d tokens; cut from the prompt: %s", self.length - 2, quoted(lost)
                    )
        options = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(list(prompts), **options).input_ids.to(self.module.device)

    @property
    def embedding(self) -> nn.Module:
        """The table of token embeddings."""
        return self.module.get_input_embeddings()

    @contextmanager
    def reading(self, embeddings: Tensor | None) -> Iterator[None]:
        """Make the module read ``embeddings`` (b, n, width) inside the block, not those of its token ids."""
        if embeddings is None:
            yield
            return
        handle = self.embedding.register_forward_hook(lambda *_: embeddings)
        self.soft = True
        try:
            yield
        finally:
            self.soft = False
            handle.remove()
