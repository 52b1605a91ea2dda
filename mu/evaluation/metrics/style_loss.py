"""The style loss of Gatys et al.: the distance of two images in the correlations of feature maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mu.core.errors import DataError
from mu.evaluation.metrics.lpips import Features

STYLE_WEIGHT = 1e6
CONTENT_LAYER = 3  # conv_4


class StyleLoss(NamedTuple):
    """Losses of each pair, (n,); 0 (equal) and more. ``total`` is 10^6 style + content."""

    style: Tensor
    content: Tensor

    @property
    def total(self) -> Tensor:
        return STYLE_WEIGHT * self.style + self.content


def gram_matrix(features: Tensor) -> Tensor:
    """(n, c, c): correlations of channels over places, F F^T / (c h w) with F (c, h w) of maps (n, c, h, w).

    Symmetric, no negative eigenvalues; independent of where things are in the image. Source: Gatys et al. 2015 (arXiv
    1508.06576). The scale c h w replaces theirs, so that layers of any size weigh the same.

    >>> gram_matrix(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])).tolist()
    [[[1.25, 0.75], [0.75, 2.25]]]
    """
    if features.ndim != 4 or not features.numel():
        raise DataError(f"feature maps (n, c, h, w) are needed, not {tuple(features.shape)}")
    rows = features.flatten(2)
    return rows @ rows.mT / rows[0].numel()


def style_loss(a: Tensor, b: Tensor, features: Features, content_layer: int = CONTENT_LAYER) -> StyleLoss:
    """Style and content loss between the images ``a`` and ``b``, both (n, 3, H, W) in 0..1; symmetric.

    Style: the mean squared difference of the Gram matrices' entries, summed over all layers that ``features`` returns.
    Content: the mean squared difference of the maps of layer ``content_layer`` (from 0). SepCE's evaluation uses the
    first five convolutions of VGG-19, before their ReLU, at 512 px, and the fourth for content: see
    `mu.evaluation.backbones.vgg_features`. Raises `DataError` for images of two shapes, a missing layer, and maps that
    are not finite.

    >>> a, b = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]), torch.tensor([[[[2.0, 1.0]], [[0.0, 3.0]]]])
    >>> [loss.tolist() for loss in style_loss(a, b, lambda images: [images], content_layer=0)]  # turned round: content
    [[0.0], [5.0]]
    """
    if a.shape != b.shape or not len(a):
        raise DataError(f"one or more images of one shape are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
    first, second = list(features(a)), list(features(b))
    if not 0 <= content_layer < len(first):
        raise DataError(f"content layer {content_layer} is not among the {len(first)} layers that the network returns")
    if not all(m.isfinite().all() for m in (*first, *second)):
        raise DataError("feature maps hold NaN or infinity: check the network and its input")
    grams = [(gram_matrix(x) - gram_matrix(y)).square().mean(dim=(1, 2)) for x, y in zip(first, second, strict=True)]
    content = (first[content_layer] - second[content_layer]).square().flatten(1).mean(dim=1)
    return StyleLoss(torch.stack(grams).sum(dim=0), content)
