"""LPIPS: the distance of two images in the feature maps of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from mu.core.errors import DataError

Features = Callable[[Tensor], Sequence[Tensor]]
"""Images (n, 3, H, W) in 0..1 -> feature maps (n, c, h, w) of several layers. It normalises its input itself."""

_EPSILON = 1e-10  # the authors' value: a place without activations has length 0


def lpips(a: Tensor, b: Tensor, features: Features, weights: Sequence[Tensor] | None = None) -> Tensor:
    """(n,) distances of the images ``a`` from those of ``b``, both (n, 3, H, W) in 0..1: 0 (equal) and more, symmetric.

    At each place of each layer the channels are scaled to length 1. The squared difference of the two unit vectors is
    weighted per channel by the layer's ``weights`` (c,), summed over channels, averaged over places and summed over
    layers. Source: Zhang et al. 2018 (arXiv 1801.03924), eq. 1, whose weights are learned and not negative. Without
    ``weights`` all are 1 (their "baseline"), and a layer adds at most 4, or 2 if no feature is negative.

    The number depends on the network and on the images' size: state both. `mu.evaluation.backbones.lpips_network` gives
    the authors' network and weights. SepCE's tables use their AlexNet on images of 64 px, which do not compare with 512
    px. With another network, such as a judge's, call the number an LPIPS-like distance. Raises `DataError` for images
    of two shapes, maps that differ in number or shape, weights that do not fit, and maps that are not finite.

    >>> import torch
    >>> a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    >>> maps = lambda images: [images.view(2, 2, 1, 1)]
    >>> lpips(a, b, maps).tolist(), lpips(a, b, maps, [torch.tensor([0.25, 0.5])]).tolist()
    ([0.0, 2.0], [0.0, 0.75])
    """
    if a.shape != b.shape or not len(a):
        raise DataError(f"one or more images of one shape are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
    first, second = list(features(a)), list(features(b))
    if not first or [m.shape for m in first] != [m.shape for m in second] or any(m.ndim != 4 for m in first):
        raise DataError("the network must give the same number and shapes of maps (n, c, h, w) for both sets of images")
    chosen = list(weights) if weights is not None else [m.new_ones(m.shape[1]) for m in first]
    if [tuple(w.shape) for w in chosen] != [m.shape[1:2] for m in first]:
        raise DataError(f"weights must be one (c,) for each layer, c = {[m.shape[1] for m in first]}")
    if not all(m.isfinite().all() for m in (*first, *second)):
        raise DataError("feature maps hold NaN or infinity: check the network and its input")
    layers = zip(first, second, chosen, strict=True)
    distance = a.new_zeros(len(a))
    for map_a, map_b, weight in layers:
        squared = (_unit(map_a) - _unit(map_b)).square()
        distance = distance + (squared * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2)).to(distance.device)
    return distance


def _unit(features: Tensor) -> Tensor:
    return features / (features.norm(dim=1, keepdim=True) + _EPSILON)
