"""Suite coco: the distances from a folder of reference images, by networks whose features are known."""

from __future__ import annotations

import importlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from typer.testing import CliRunner

from mu.cli import app
from mu.core.errors import ConfigError, DataError, ModelError
from mu.core.run import RunDirectory
from mu.diffusion.image_files import save_image
from mu.evaluation import backbones
from mu.evaluation.answers import Subject
from mu.evaluation.suites.coco import CocoSuite, digest, images_in
from tests.evaluation.suites.conftest import COLOURS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    path.write_text("image_id,caption,seed\n1,one,1\n2,two,2\n3,three,3\n4,four,4\n")
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Two red images and two white ones, of two sizes."""
    for k, (name, side) in enumerate([("red", 4), ("red", 6), ("", 4), ("", 4)]):
        image = torch.tensor(COLOURS[name]).view(3, 1, 1).expand(3, side, side)
        save_image(image, tmp_path / "real" / ("" if k else "below") / f"{k}.png")
    return tmp_path / "real"


def shows(column, row):
    return {"one": "red", "two": "red"}.get(row.prompt, "") if column == "base" else ""


def test_fid_is_the_frechet_distance_of_inception_s_features(bank, scored, file, reference, monkeypatch):
    told = []

    def network(device, weights=None):
        told.append(weights)
        return lambda images: images.mean(dim=(2, 3))[:, 1:2]  # the green level: 0 for red, 1 for white

    monkeypatch.setattr(backbones, "inception_features", network)
    red = bank("red")
    plan = CocoSuite(Subject.of(red), [1], prompts=file, reference=reference, inception=Path("weights.pth"))
    found = scored(plan, red, shows)
    assert told == [Path("weights.pth")]
    assert found["base"]["FID"].value == pytest.approx(0, abs=1e-9)
    # Means 1 and 1/2, variances 0 and 1/3: 1/4 + 1/3.
    assert found["edited"]["FID"].value == pytest.approx(1 / 4 + 1 / 3)
    told = f"4 reference images ({digest(images_in(reference))[:6]})"
    assert told in found["base"]["FID"].protocol and found["base"]["FID"].n == 4
    assert found["how"]["reference"] == {"images": 4, "digest": digest(images_in(reference))}
    assert len(found["how"]["not measured"]) == 1 and "--clip" in found["how"]["not measured"][0]


def test_distances_and_their_change_have_intervals_of_twenty_images_or_more(bank, scored, file, reference, monkeypatch):
    monkeypatch.setattr(backbones, "inception_features", lambda *_: lambda images: images.mean(dim=(2, 3)))
    red, rows = bank("red"), "".join(f"{k},caption {k},{k}\n" for k in range(24))
    file.write_text(f"image_id,caption,seed\n{rows}")
    of = lambda column, row: ("red", "green", "blue", "")[row.seed % (4 if column == "base" else 2)]  # noqa: E731
    plan = CocoSuite(Subject.of(red), [1], prompts=file, reference=reference, clip="canvas-clip")
    found = scored(plan, red, of)
    for name in ("FID", "Fréchet distance to reference", "CMMD to reference"):
        base, edited = found["base"][name], found["edited"][name]
        assert base.n == edited.n == 24 and base.change is None
        for score in (base, edited):
            assert score.interval[0] < score.value < score.interval[1]
        assert edited.change[0] < edited.value - base.value < edited.change[1]


def test_without_inception_a_clip_measures_and_the_rest_is_said(bank, scored, file, reference, without_networks):
    red = bank("red")
    found = scored(CocoSuite(Subject.of(red), [1], prompts=file, reference=reference, clip="canvas-clip"), red, shows)
    names = ["Fréchet distance to reference", "CMMD to reference", "CLIP score"]
    assert list(found["base"]) == list(found["edited"]) == names
    for name in names[:2]:
        assert found["base"][name].value == pytest.approx(0, abs=1e-5) and found["edited"][name].value > 1e-3
    assert found["edited"]["CLIP score"].change and found["base"]["CLIP score"].n == 4
    assert [each.split(":")[0] for each in found["how"]["not measured"]] == ["FID"]


def test_refused_by_name(bank, file, reference, without_networks, tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    red, empty = bank("red"), tmp_path / "none"

    def refused(error, said, **options):
        with pytest.raises(error, match=re.compile(said)):
            CocoSuite(
                Subject.of(red), [1], **{"prompts": file, "reference": reference, "clip": "canvas-clip", **options}
            )

    refused(ConfigError, "--reference", reference=None)
    refused(ConfigError, "--prompts", prompts=None)
    refused(DataError, "holds 0 images", reference=empty)
    refused(DataError, "does not exist", reference=empty / "below")
    refused(DataError, "is not a folder", reference=Path(__file__))
    refused(ConfigError, "nothing can be measured.*--clip", clip=None)
    refused(ModelError, "none", clip="canvas")
    one = tmp_path / "one.csv"
    one.write_text("caption\na\n")
    refused(DataError, "one caption", prompts=one)
    CocoSuite(Subject.of(red), [1], prompts=file, reference=reference, clip="canvas-clip")  # the control


def test_a_weight_file_that_was_named_must_be_there(bank, file, reference, monkeypatch):
    def network(device, weights=None):
        raise ModelError(f"{weights} does not exist")

    monkeypatch.setattr(backbones, "inception_features", network)
    with pytest.raises(ModelError, match=r"w\.pth"):
        CocoSuite(
            Subject.of(bank("red")), [1], prompts=file, reference=reference, inception=Path("w.pth"), clip="canvas-clip"
        )


def test_another_image_or_order_is_another_reference(reference):
    before = digest(images_in(reference))
    image = images_in(reference)[0]
    image.write_bytes(images_in(reference)[1].read_bytes())
    assert digest(images_in(reference)) != before


@pytest.fixture
def inception(tmp_path, monkeypatch):
    """A file of random numbers in the layout of torch-fidelity's Inception. Its package imports torchvision for other
    networks; Inception does without."""
    if find_spec("torchvision") is None:
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            module = ModuleType(f"torchvision{name}")
            module.__dict__.update(dict.fromkeys(("CIFAR10", "STL10", "CIFAR100"), Dataset))
            monkeypatch.setitem(sys.modules, module.__name__, module)
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    package = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")

    class Blank(package.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            pass

    with monkeypatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(package, "load_state_dict_from_url", lambda *_, **__: {})
        network = Blank("random", ["2048"])
        for weight in (each for each in network.parameters() if each.ndim == 4):
            torch.nn.init.kaiming_normal_(weight)  # else nothing of an image is left after its layers
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


@pytest.mark.slow
def test_fid_of_inception_s_weights_in_a_file_is_torch_fidelity_s(file, reference, tmp_path, inception):
    """The whole way from the command line; features and distance by the package's own functions beside it."""
    for column, colours in {"base": ("red", "red", "", "green"), "made": ("blue", "green", "blue", "blue")}.items():
        for case, name in enumerate(colours, start=1):
            save_image(torch.tensor(COLOURS[name]).view(3, 1, 1).expand(3, 8, 8), tmp_path / column / f"{case}.png")
    words = ["evaluate", "--suite", "coco", "--images", tmp_path / "made", "--base-images", tmp_path / "base"]
    words += ["--concept", "red", "--prompts", file, "--reference", reference, "--inception", inception]
    words += ["--out", tmp_path / "out"]
    assert (done := CliRunner().invoke(app, [str(word) for word in words])).exit_code == 0, done.output
    scores = {c: {s.name: s for s in each} for c, each in RunDirectory(tmp_path / "out").read_scores()["coco"].items()}
    package = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    fid = importlib.import_module("torch_fidelity.metric_fid")
    network = package.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(inception))

    def statistics(paths):
        images = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] for path in paths]
        return fid.fid_features_to_statistics(torch.cat([network(image)[0] for image in images]).double())

    sets = (sorted((tmp_path / "made").glob("*.png")), images_in(reference))
    own = fid.fid_statistics_to_metric(*map(statistics, sets), verbose=False)["frechet_inception_distance"]
    edited, base = scores["edited"]["FID"], scores["base"]["FID"]
    assert edited.value == pytest.approx(own, rel=1e-3) and edited.value > 2 * base.value > 1e-6
    assert edited.n == base.n == 4
    torch.save({"fc.bias": torch.ones(2)}, inception)
    refused = CliRunner().invoke(app, [str(word) for word in (*words[:-1], tmp_path / "other")])
    assert refused.exit_code == 2 and not (tmp_path / "other").exists()
    assert str(inception) in refused.output and "Conv2d_1a_3x3" in refused.output
