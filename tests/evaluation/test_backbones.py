"""Optional packages as functions: against the real package where it is there, by a stand-in of the same face, and
absent."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mu.core.errors import ConfigError, MissingDependency, ModelError
from mu.evaluation import backbones
from mu.evaluation.metrics.lpips import lpips
from mu.evaluation.metrics.nudity import nudity


@pytest.fixture
def image() -> Tensor:
    """A red image, 40 px wide and 20 high."""
    return torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 20, 40)


@pytest.mark.parametrize(
    ("build", "modules", "says"),
    [
        (backbones.lpips_network, ["lpips"], "'lpips'"),
        (backbones.vgg_features, ["timm"], "'timm'"),
        (
            backbones.inception_features,
            ["torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"],
            "'torch-fidelity'",
        ),
        (backbones.nudity_detector, ["nudenet"], "'nudenet'"),
    ],
)
def test_a_missing_package_is_one_clear_line(build, modules, says, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"{says}.*'eval'"):
        build()


def test_a_package_that_is_broken_is_one_clear_line(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')", encoding="utf-8"
    )
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"'timm'.*operator torchvision::nms"):
        backbones.vgg_features()


def test_weights_that_cannot_be_had_are_one_clear_line(monkeypatch):
    def create_model(name: str, pretrained: bool) -> Any:
        raise OSError("no route to host\nlong story")

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    with pytest.raises(ModelError, match=r"VGG-19.*\(no route to host\)$"):
        backbones.vgg_features()


class Lin(nn.Module):
    """Imitates the package's layer of channel weights: dropout, then a convolution of one place."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class Whole(nn.Module):
    """Imitates the package's network, and computes the distance the package's way."""

    def __init__(self, net: str, verbose: bool):
        super().__init__()
        self.scaling_layer = lambda x: (x + 0.03) / 0.45
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.lins = nn.ModuleList([Lin(4), Lin(5)])

    def net(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = self.first(x).relu()
        return first, self.second(first).relu()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(a))
        for lin, x, y in zip(self.lins, self.net(self.scaling_layer(a)), self.net(self.scaling_layer(b)), strict=True):
            x, y = (m / (m.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for m in (x, y))
            total = total + lin((x - y) ** 2).mean(dim=(1, 2, 3))
        return total


def test_lpips_of_the_package_s_parts_is_the_package_s_lpips(monkeypatch):
    made = []

    def build(**options: Any) -> Whole:
        made.append(Whole(**options))
        return made[0]

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=build))
    features, weights = backbones.lpips_network("alex")
    a, b = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    assert lpips(a, b, features, weights).tolist() == pytest.approx(made[0](2 * a - 1, 2 * b - 1).tolist(), rel=1e-5)
    with pytest.raises(ConfigError, match="squeeze"):
        backbones.lpips_network("resnet")


def test_vgg_s_maps_are_those_before_the_relu(monkeypatch):
    """Its ReLU works in place: without care a map would lose its negative values."""
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    model = SimpleNamespace(features=nn.Sequential(*layers, nn.Conv2d(4, 6, 3)))
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=lambda name, pretrained: model))
    maps = backbones.vgg_features(layers=2)(torch.rand(1, 3, 12, 12))
    assert [m.shape[1] for m in maps] == [4, 4] and all((m < 0).any() for m in maps)


def test_inception_sees_bytes(monkeypatch):
    class Extractor(nn.Module):
        def __init__(self, name: str, features: list[str]):
            super().__init__()
            assert features == ["2048"]

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x.flatten(1),)

    package = SimpleNamespace(FeatureExtractorInceptionV3=Extractor)
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", package)
    seen = backbones.inception_features()(torch.tensor([0.0, 0.5, 1.2]).view(1, 3, 1, 1))
    assert seen.dtype == torch.uint8 and seen.tolist() == [[0, 128, 255]]


def test_the_package_s_own_detector_gets_blue_green_red(monkeypatch, tmp_path, image):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = [{"class": "BELLY_EXPOSED", "score": 0.8, "box": [1, 2, 3, 4]}]
    asked = []
    detector = SimpleNamespace(detect=lambda pixels: asked.append(pixels) or found)
    monkeypatch.setitem(sys.modules, "nudenet", SimpleNamespace(NudeDetector=lambda: detector))
    assert nudity([backbones.nudity_detector()(image)]).total == 1
    assert asked[0].shape == (20, 40, 3) and asked[0].dtype == np.uint8 and asked[0][3, 7].tolist() == [0, 0, 255]


def test_the_checkpoint_of_version_2_is_run_where_it_lies(monkeypatch, tmp_path, image):
    folder = tmp_path / ".NudeNet"
    folder.mkdir()
    (folder / "detector_v2_default_checkpoint.onnx").write_bytes(b"")
    seen = {}

    class Session:
        def __init__(self, path: str, providers: list[str]):
            assert path == str(folder / "detector_v2_default_checkpoint.onnx") and providers

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="input_1:0")]

        def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            (seen["pixels"],) = inputs.values()
            boxes = np.float32([[[0, 0, 400, 800], [-1] * 4]])
            return [boxes, np.float32([[0.3, -1]]), np.int32([[1, -1]])]

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    monkeypatch.setitem(sys.modules, "nudenet", None)  # the checkpoint does not need it
    with pytest.raises(ModelError, match=r"\.NudeNet/classes"):
        backbones.nudity_detector()
    (folder / "classes").write_text("FACE_F\nEXPOSED_BREAST_F\n", encoding="utf-8")
    found = backbones.nudity_detector()(image)

    # 20 x 40 -> 666.5 x 1333 by the longest side; blue, green, red with the Caffe means off.
    assert seen["pixels"].shape[0] == 1 and seen["pixels"].shape[2:] == (1333, 3) and seen["pixels"].dtype == np.float32
    assert seen["pixels"][0, 300, 600].tolist() == pytest.approx([-103.939, -116.779, 255 - 123.68], abs=1e-3)
    assert found == [
        {
            "label": "EXPOSED_BREAST_F",
            "score": pytest.approx(0.3),
            "box": pytest.approx([0, 0, 12.003, 24.006], abs=1e-2),
        }
    ]
    assert nudity([found]).total == 0 and nudity([found], 0.2).parts["FEMALE_BREAST_EXPOSED"] == 1


def test_a_file_of_nudenet_3_that_is_none_is_named(tmp_path):
    pytest.importorskip("nudenet")
    (tmp_path / "640m.onnx").write_text("<html>")
    with pytest.raises(ModelError, match=r"NudeNet in .*640m\.onnx cannot be"):
        backbones.nudity_detector(version=3, checkpoint=tmp_path / "640m.onnx")


def test_a_folder_that_is_named_must_hold_the_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="detector_v2"):
        backbones.nudity_detector(tmp_path)


def test_inception_s_weights_may_be_a_file(monkeypatch, tmp_path):
    told = []

    class Extractor(nn.Module):
        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str):
            super().__init__()
            told.append(torch.load(feature_extractor_weights_path, weights_only=True))
            if "wrong" in told[-1]:
                raise RuntimeError('Error(s) in loading state_dict for Extractor:\n\tMissing key(s): "fc.bias". ')

    package = SimpleNamespace(FeatureExtractorInceptionV3=Extractor)
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", package)
    file, ran = tmp_path / "inception.pth", tmp_path / "ran"
    with pytest.raises(ModelError, match=r"inception\.pth does not exist"):
        backbones.inception_features(weights=file)
    file.write_bytes(b"")
    with pytest.raises(ModelError, match=r"inception\.pth is empty"):
        backbones.inception_features(weights=file)

    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    torch.save({"fc.bias": torch.ones(2), "more": Code()}, file)
    backbones.inception_features(weights=file)
    assert not ran.exists() and {name: each.tolist() for name, each in told.pop().items()} == {"fc.bias": [1, 1]}
    torch.load(file, weights_only=False)
    assert ran.exists(), "control: who reads the file itself runs its code"
    torch.save({"wrong": torch.ones(2)}, file)
    with pytest.raises(ModelError, match=r'Inception in .*inception\.pth .*Extractor: Missing key\(s\): "fc\.bias"'):
        backbones.inception_features(weights=file)
