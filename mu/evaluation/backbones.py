"""The networks of published metrics, from optional packages, as the functions that the metrics take.

Input images are (n, 3, H, W) in 0..1. Weights are downloaded on first use, to the package's own cache. A missing
package raises `MissingDependency`, missing weights raise `ModelError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.core.errors import ConfigError, MissingDependency, ModelError, quoted
from mu.evaluation.metrics.lpips import Features
from mu.evaluation.metrics.nudity import Finding
from mu.models.formats.checkpoint import read_state_dict

Detector = Callable[[Tensor], Sequence[Finding]]
"""An image (3, H, W) in 0..1 -> the findings on it."""

NUDENET_2 = Path("~/.NudeNet")
"""NudeNet 2's own folder for its checkpoint; unpack the archive that ESD's authors share here."""

_T = TypeVar("_T")


def lpips_network(net: str = "alex", device: torch.device | str = "cpu") -> tuple[Features, list[Tensor]]:
    """The feature maps and learned channel weights of LPIPS v0.1: ``alex`` (the tables'), ``vgg`` or ``squeeze``."""
    if net not in ("alex", "vgg", "squeeze"):
        raise ConfigError(f"LPIPS has no network {quoted(net)}: choose alex, vgg or squeeze")
    package = _package("lpips", "LPIPS")
    model = (
        _weights(f"LPIPS ({net})", lambda: package.LPIPS(net=net, verbose=False))
        .requires_grad_(False)
        .eval()
        .to(device)
    )
    weights = [layer.model[-1].weight.flatten() for layer in model.lins]

    def features(images: Tensor) -> list[Tensor]:
        return list(model.net(model.scaling_layer(2 * images.to(device) - 1)))

    return features, weights


def vgg_features(device: torch.device | str = "cpu", layers: int = 5) -> Features:
    """The first ``layers`` convolutions of VGG-19 (ImageNet weights), each before its ReLU."""
    timm = _package("timm", "the style loss")
    build: Callable[[], Any] = lambda: timm.create_model("vgg19.tv_in1k", pretrained=True)  # noqa: E731
    model = _weights("VGG-19", build).features.requires_grad_(False).eval().to(device)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def features(images: Tensor) -> list[Tensor]:
        x, maps = (images.to(device) - mean) / std, []
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                maps.append(x.clone())  # its ReLU works in place
                if len(maps) == layers:
                    break
        return maps

    return features


def inception_features(device: torch.device | str = "cpu", weights: Path | None = None) -> Callable[[Tensor], Tensor]:
    """(n, 2048) features for FID, from the Inception network of the original TensorFlow implementation.

    ``weights`` is a file of torch-fidelity's weights; without one they are downloaded. See `frechet_distance` for its
    value with few images: SepCE's 240 for each concept allow only comparisons.
    """
    package = _package("torch_fidelity.feature_extractor_inceptionv3", "FID")
    if weights and not weights.is_file():
        raise ModelError(f"{weights} does not exist: name the file of torch-fidelity's Inception weights")
    build = partial(package.FeatureExtractorInceptionV3, "inception-v3-compat", ["2048"])
    model = _weights("Inception", build) if weights is None else _from_file(build, weights)
    model = model.requires_grad_(False).eval().to(device)
    return lambda images: model((images.clamp(0, 1) * 255).round().to(torch.uint8).to(device))[0]


def inception_or_why(device: torch.device | str, weights: Path | None) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """`inception_features`, or None and why they are not there. A file that was named must be there."""
    try:
        return inception_features(device, weights), ""
    except (MissingDependency, ModelError) as trouble:
        if weights:
            raise
        return None, f"FID: {trouble}"


def _from_file(build: Callable[..., Any], weights: Path) -> Any:
    """What ``build`` makes with a copy of the tensors in ``weights``: torch-fidelity would run a pickle's code."""
    tensors = read_state_dict(weights)
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "inception.pth"
        torch.save(tensors, copy)
        return _weights(f"Inception in {weights}", partial(build, feature_extractor_weights_path=str(copy)))


def nudity_detector(
    folder: Path = NUDENET_2, *, version: Literal[2, 3] | None = None, checkpoint: Path | None = None
) -> Detector:
    """NudeNet 2's detector if ``folder`` holds its checkpoint, else NudeNet 3's from the package ``nudenet``.

    ``version`` 3 does not look into ``folder``. ``checkpoint`` is a file of NudeNet 3 in place of the package's own
    ``320n.onnx``; a name that begins with 640 means images of 640 px. NudeNet 2's checkpoint is
    ``detector_v2_default_checkpoint.onnx`` (or ``base``) with the file ``classes``. It is run here, since the package
    no longer can. The shortest side becomes 800 px, the longest 1333 at most; colours are BGR, with the Caffe means
    subtracted. Unlike the package of that time it drops no findings: the metric sets the threshold.
    """
    place = folder.expanduser()
    checkpoints = sorted(place.glob("detector_v2_*_checkpoint.onnx"), key=lambda path: "default" not in path.name)
    if checkpoints and version != 3:
        return _nudenet_2(checkpoints[0], place / "classes")
    if folder != NUDENET_2 or version == 2:
        raise ModelError(f"{folder} holds no detector_v2_default_checkpoint.onnx: unpack NudeNet 2's archive there")
    package = _package("nudenet", "counting exposed body parts")
    if checkpoint and not checkpoint.is_file():
        raise ModelError(f"{checkpoint} does not exist: name the file of a NudeNet 3 detector, like 640m.onnx")
    larger = (
        {"model_path": str(checkpoint), "inference_resolution": 640 if "640" in checkpoint.name else 320}
        if checkpoint
        else {}
    )
    detector = _weights(f"NudeNet in {checkpoint}" if checkpoint else "NudeNet", lambda: package.NudeDetector(**larger))

    def detect(image: Tensor) -> Sequence[Finding]:
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        found: Sequence[Finding] = detector.detect(np.ascontiguousarray(pixels.flip(0).permute(1, 2, 0).numpy()))
        return found

    return detect


def nudenet_file() -> Path:
    """The weights that the package ``nudenet`` brings."""
    return Path(_package("nudenet", "counting exposed body parts").__file__).with_name("320n.onnx")


def _nudenet_2(checkpoint: Path, names: Path) -> Detector:
    runtime = _package("onnxruntime", "NudeNet", "nudenet")
    if not names.is_file():
        raise ModelError(f"{names} is missing: put the classes of {checkpoint.name} there, one a line")
    classes = names.read_text(encoding="utf-8").split()
    session = _weights(
        str(checkpoint), lambda: runtime.InferenceSession(str(checkpoint), providers=["CPUExecutionProvider"])
    )
    means = torch.tensor([103.939, 116.779, 123.68])

    def detect(image: Tensor) -> Sequence[Finding]:
        h, w = image.shape[-2:]
        scale = min(800 / min(h, w), 1333 / max(h, w))
        resized = F.interpolate(image[None] * 255, (round(h * scale), round(w * scale)), mode="bilinear")
        pixels = resized[0].flip(0).permute(1, 2, 0) - means
        outputs = session.run(None, {session.get_inputs()[0].name: pixels[None].numpy()})
        # In any order: boxes (1, k, 4), scores (1, k) and the classes' whole numbers (1, k), padded with -1.
        labels = next(o for o in outputs if o.dtype.kind == "i")[0]
        scores = next(o for o in outputs if o.dtype.kind == "f" and o.ndim == 2)[0]
        boxes = next(o for o in outputs if o.ndim == 3)[0] / scale
        rows = zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
        return [{"label": classes[label], "score": score, "box": box} for label, score, box in rows if label >= 0]

    return detect


def _package(module: str, need: str, package: str | None = None) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingDependency(package or module.partition(".")[0].replace("_", "-"), "eval", need) from None
    except Exception as error:  # e.g. torchvision with a torch that was built without CUDA
        raise ModelError(
            f"{need} needs the package {quoted(module)}, which is installed but cannot be imported ({error})"
        ) from None


def _weights(name: str, build: Callable[[], _T]) -> _T:
    try:
        return build()
    except Exception as error:
        first, *others = (str(error).strip() or type(error).__name__).splitlines()
        reason = " ".join([first, *(others[0].split() if others and first.endswith(":") else [])])[:200]
        raise ModelError(f"the weights of {name} cannot be downloaded or read ({reason})") from None
