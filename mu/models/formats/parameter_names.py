"""Names that one parameter has in files of different versions and tools."""

from __future__ import annotations

from collections.abc import Iterator

WRAPPERS = ("module.", "_orig_mod.", "model_state_dict.", "model.")
"""What DataParallel, ``torch.compile`` and programs that train put before every name."""
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def spellings(name: str) -> Iterator[str]:
    """``name`` first, then other names that versions of diffusers and transformers give the same parameter."""
    yield name
    yield name.replace("text_model.", "", 1)
    yield f"text_model.{name}"
    yield f"model.{name}"
    if name.startswith("embedding."):  # AdvUnlearn's text encoder keeps its layers under names of their own, too
        yield name.replace("embedding.", "embeddings.", 1)
        yield name.replace("embedding.", "text_model.embeddings.", 1)
    head, _, kind = name.rpartition(".")
    block, _, layer = head.rpartition(".")
    if layer in _OLD_ATTENTION:
        yield f"{block}.{_OLD_ATTENTION[layer]}.{kind}"


def unwrapped(name: str) -> str:
    """``name`` without the prefixes of `WRAPPERS`."""
    while wrapper := next((each for each in WRAPPERS if name.startswith(each)), ""):
        name = name.removeprefix(wrapper)
    return name
