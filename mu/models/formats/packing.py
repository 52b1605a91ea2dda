"""Convert tensors between diffusers or transformers and the layouts of CompVis and open_clip, by a map of names.

The map serves both directions. Some tensors differ in more than the name:

- open_clip towers keep q, k and v in one tensor: three parameters have the same name in the map, in this order;
- open_clip's ``text_projection`` and ``visual.proj`` are the transpose of the weight of a linear layer;
- the attention of the autoencoder is a 1x1 convolution in CompVis and a linear layer in diffusers.

The tests compare with the converters in ``diffusers.loaders.single_file_utils``, which are not used here. They
convert in one direction only. They do not name missing or surplus tensors, cut q, k and v at the wrong rows if a size
is unexpected, and drop the 24th layer of every text encoder in SD 2.x's layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mu.core.errors import ModelError

TRANSPOSED = ("text_projection", "visual.proj")


def pack(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename and lay out the tensors of a model as in CompVis or open_clip; the numbers are the same bit for bit.

    Raises `ModelError` if ``weights`` are not those that ``names`` was made for, for example with LoRA layers added.
    """
    if strange := names.keys() ^ weights.keys():
        raise ModelError(
            f"the model's parameters are not those of its config ({_some(strange)}): merge or remove adapters first"
        )
    parts: dict[str, list[Tensor]] = {}
    for name, key in names.items():
        parts.setdefault(key, []).append(_packed(weights[name].detach(), key))
    return {key: torch.cat(found) if len(found) > 1 else found[0].contiguous() for key, found in parts.items()}


def unpack(
    checkpoint: Mapping[str, Tensor], names: Mapping[str, str], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Invert `pack`: take the tensors in ``names`` out of ``checkpoint``, in ``shapes``; others are ignored.

    Raises `ModelError` for missing tensors and for other shapes.
    """
    sharing: dict[str, list[str]] = {}
    for name, key in names.items():
        sharing.setdefault(key, []).append(name)
    if missing := sharing.keys() - checkpoint.keys():
        raise ModelError(f"{len(missing)} tensors of the model are missing ({_some(missing)})")
    weights = {}
    for key, together in sharing.items():
        for name, part in zip(together, parts_of(checkpoint[key], len(together), key), strict=True):
            weights[name] = fitted(part, key, shapes[name])
    return weights


def parts_of(tensor: Tensor, count: int, key: str) -> list[Tensor]:
    """Split ``tensor``, which is ``key`` in the file, into the ``count`` parameters that it holds.

    Raises `ModelError` if it cannot be split into that many equal parts.
    """
    if key.endswith(TRANSPOSED):
        return [tensor.transpose(0, -1).contiguous()]
    if count == 1:
        return [tensor]
    if tensor.dim() == 0 or len(tensor) % count:
        raise ModelError(f"{key} has the shape {_shape(tensor.shape)}, which cannot be split into {count} equal parts")
    return [part.clone() for part in tensor.chunk(count)]


def _packed(tensor: Tensor, key: str) -> Tensor:
    if key.endswith(TRANSPOSED):
        return tensor.transpose(0, -1)
    return tensor[:, :, None, None] if ".mid.attn_1." in key and tensor.dim() == 2 else tensor


def fitted(tensor: Tensor, key: str, shape: torch.Size) -> Tensor:
    """``tensor``, which is ``key`` in a file, in ``shape``: a 1x1 convolution may stand for a linear layer.

    Raises `ModelError` for another shape.
    """
    if shape not in (tensor.shape, (*tensor.shape, 1, 1)) and (*shape, 1, 1) != tensor.shape:
        raise ModelError(f"{key} has the shape {_shape(tensor.shape)}, and the model needs {_shape(shape)}")
    return tensor.reshape(shape).contiguous()


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "()"
