"""A real member of the family for every test: the embedded model's architecture with random weights, loaded as any
model is."""

from __future__ import annotations

import hashlib
import logging
import runpy
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import nn
from transformers import CLIPTextModel

from mu.core.evidence import note_search
from mu.core.run import RunDirectory
from mu.evaluation.suites import concept as concept_suite
from mu.models import load
from mu.models.canvas import architecture
from mu.models.diffusion import DiffusionModel, face
from mu.models.formats import architectures
from mu.models.quiet import quiet_libraries

Snapshot = Callable[[Any], str]
Call = Callable[[str], int]
ROOT = Path(__file__).resolve().parent.parent

# A job in the background (`make test &`, some CI runners) starts with Ctrl-C ignored, and so would every process that a
# test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def fingerprint(model: Any) -> str:
    """A hash of every parameter and buffer, bit for bit: of a module, or of all components of a loaded model."""
    parts = {"": model} if isinstance(model, nn.Module) else model.components
    digest = hashlib.blake2b()
    for part, module in parts.items():
        for kind in (module.named_parameters(), module.named_buffers()):
            for name, value in kind:
                digest.update(f"{part}.{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """``call("train-scripts/CiE.py --prompt neon")`` in an empty folder: the exit code."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("mu")
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))

    def run(command: str) -> int:
        script, *words = shlex.split(command)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [script, *words])
            patch.syspath_prepend(str((ROOT / script).parent))
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / script), run_name="__main__")
        return int(ended.value.code or 0)

    return run


def searched(folder: Path) -> RunDirectory:
    """A run whose search for an edit of "neon" has ended."""
    run = RunDirectory(folder)
    run.begin("concepts: [neon]\n", {"method": "spm", "model": "canvas", "concepts": ["neon"]})
    run.edit.write_bytes(b"weights")
    note_search(run)
    return run


@pytest.fixture
def small_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated searches look at few words in few phrasings, at rough images, and try few anchors."""
    few = {
        "surroundings": {"MOST_WORDS": 6, "JOINED": 4, "PROBED": 1},
        "kinship": {"BESIDE": 2, "REFERENCES": 2},
        "probe": {"PEERS": 2, "TRIED": 4, "STEPS": 3},
    }
    for module, constants in few.items():
        for name, count in constants.items():
            monkeypatch.setattr(f"mu.training.{module}.{name}", count)


@pytest.fixture
def few_phrasings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite ``concept`` asks for each concept in one phrasing."""
    for name in ("TARGET_TEMPLATES", "NEIGHBOUR_TEMPLATES"):
        fewer = {kind: texts[:1] for kind, texts in getattr(concept_suite, name).items()}
        monkeypatch.setattr(concept_suite, name, fewer)


@pytest.fixture(scope="session")
def snapshot() -> Snapshot:
    """``snapshot(model)`` is equal before and after only where every parameter and buffer is, bit for bit."""
    return fingerprint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the embedded model's architecture with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = architecture.new_tokenizer()
    with torch.random.fork_rng(), quiet_libraries():
        torch.manual_seed(0)
        clip = architecture.new_clip(tokenizer)
        text_encoder = CLIPTextModel(clip.config.text_config)
        text_encoder.load_state_dict(clip.text_model.state_dict())
        StableDiffusionPipeline(
            vae=architecture.new_autoencoder(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=architecture.new_unet(),
            scheduler=architecture.new_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> DiffusionModel:
    """`tiny_folder`, loaded. Shared by the whole session: who changes it changes it back."""
    model = load(tiny_folder, device="cpu")
    assert isinstance(model, DiffusionModel)
    return model


def family_member(
    configs: dict[str, dict[str, Any]],
    name: str,
    *,
    unet: dict[str, Any],
    text: dict[str, Any],
    text_2: dict[str, Any] | None = None,
) -> DiffusionModel:
    """A published architecture made small: random weights, the tiny tokenizer and a narrow autoencoder."""
    tokenizer = architecture.new_tokenizer()
    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    layers = {
        "max_position_embeddings": architecture.Sizes().tokens,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
    }
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}
    configs["unet"] |= blocks | {"layers_per_block": 1, "sample_size": 8} | unet
    configs["text_encoder"] |= layers | special | text
    configs["vae"] |= {
        "block_out_channels": [4, 8, 8, 8],
        "norm_num_groups": 4,
        "sample_size": 64,
        "layers_per_block": 1,
    }
    kind: Any = StableDiffusionPipeline
    extra: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if text_2 is not None:
        configs["text_encoder_2"] |= layers | special | text_2
        kind, extra = StableDiffusionXLPipeline, {"tokenizer_2": tokenizer}
    with torch.random.fork_rng(), quiet_libraries():
        torch.manual_seed(0)
        parts = {part: architectures.new_component(config) for part, config in configs.items()}
        return face(kind(tokenizer=tokenizer, **parts, **extra), name)


@pytest.fixture(scope="session")
def wide_text() -> DiffusionModel:
    """What a Stable Diffusion 1.x reads of a text, 77 positions of width 768, on a narrow UNet."""
    unet = {"block_out_channels": [8, 16], "attention_head_dim": 2, "norm_num_groups": 4, "cross_attention_dim": 768}
    text = {"hidden_size": 768, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 77}
    model = family_member(architectures.stable_diffusion_1(), "wide-text", unet=unet, text=text)
    model.text[0].tokenizer.model_max_length = 77
    return model


@pytest.fixture(scope="session")
def tiny_v() -> DiffusionModel:
    """SD 2.x in small: linear projections, and the UNet predicts v."""
    unet = {
        "block_out_channels": [32, 64],
        "attention_head_dim": [2, 4],
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
    }
    text = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32}
    return family_member(
        architectures.stable_diffusion_2(), "tiny-v", unet=unet | {"upcast_attention": False}, text=text
    )


@pytest.fixture(scope="session")
def tiny_xl() -> DiffusionModel:
    """SDXL in small: two text encoders, pooled prompt, size conditioning."""
    unet = {
        "block_out_channels": [32, 64],
        "attention_head_dim": [2, 4],
        "norm_num_groups": 8,
        "cross_attention_dim": 32 + 48,
        "transformer_layers_per_block": [1, 2],
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
    }
    text = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32}
    text_2 = {"hidden_size": 48, "intermediate_size": 96, "projection_dim": 24}
    return family_member(architectures.stable_diffusion_xl(), "tiny-xl", unet=unet, text=text, text_2=text_2)
