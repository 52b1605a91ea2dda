"""Images through torch.compile: those of the edits that are on, whatever was compiled before."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mu.core.errors import ConfigError
from mu.diffusion.image_folder import recipe_of
from mu.diffusion.sampling import generate
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.gates import FacilitatedTransport
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.evaluation.answers import Answers
from mu.models.diffusion import DiffusionModel
from mu.models.formats import architectures
from tests.conftest import family_member

PROMPTS = ["a neon cat", "a dog", "a picture"]


@pytest.fixture(scope="module")
def one_block() -> DiffusionModel:
    """A UNet of one block each way, as each takes seconds to trace; the first alone reads the prompt."""
    unet = {
        "block_out_channels": [32],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "mid_block_type": None,
        "up_block_types": ["UpBlock2D"],
        "attention_head_dim": 2,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
    }
    text = {"hidden_size": 32, "intermediate_size": 64}
    return family_member(architectures.stable_diffusion_1(), "one-block", unet=unet, text=text)


@pytest.fixture
def traced(one_block: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[DiffusionModel]:
    """Compiled by a backend that runs what torch traced as it is."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(one_block, "compiles", True)
    yield one_block
    torch._dynamo.reset()


def edit(model: DiffusionModel, concept: str = "neon") -> LowRankEdit:
    g = torch.Generator().manual_seed(1)
    factors = {}
    for name, layer in model.layers("text-values").items():
        assert isinstance(layer, nn.Linear)
        sizes = (2, layer.in_features), (layer.out_features, 2)
        factors[name] = Factors(*(torch.randn(size, generator=g) for size in sizes), 2.0)
    return LowRankEdit(factors, EditInfo("test", (concept,), gate=FacilitatedTransport(1.0)))


def images(model: DiffusionModel) -> Tensor:
    return generate(model, PROMPTS, [1, 2, 3], steps=2, guidance=4.0, batch=1)


def test_compiled_images_are_of_the_edits_that_are_on(traced: DiffusionModel) -> None:
    bank = Bank(traced, [edit(traced)])
    base = images(traced)
    with bank.applied():
        edited = images(traced)
    again = images(traced)
    traced.compiles = False
    assert torch.allclose(base, images(traced), atol=1e-4) and torch.equal(base, again)
    with bank.applied():
        assert torch.allclose(edited, images(traced), atol=1e-4)
    assert not torch.allclose(edited[0], base[0], atol=1e-2)  # the control: the edit shows


def test_their_recipe_says_so(traced: DiffusionModel, tmp_path: Path) -> None:
    """So that no folder holds images of both."""
    bank = Bank(traced, [edit(traced)])
    answers = Answers(bank, tmp_path / "base", tmp_path / "edited", 2, 4.0)
    assert answers.recipe["compiled"] and recipe_of(bank)["compiled"]
    traced.compiles = False
    usual = Answers(bank, tmp_path / "base", tmp_path / "edited", 2, 4.0)
    assert "compiled" not in usual.recipe and "compiled" not in recipe_of(bank)


def test_where_nothing_can_be_compiled_is_one_line(traced: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler was found\nmore lines")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(ConfigError, match=r"torch\.compile fails") as told:
        images(traced)
    assert "\n" not in str(told.value)
