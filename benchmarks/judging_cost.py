"""What judging, features and files cost beside sampling: `mu evaluate`, suite concept, in one run.

    OMP_NUM_THREADS=1 python benchmarks/judging_cost.py --json docs/results/judging_cost.json

Two models, each with an edit of random numbers (what it does to the images changes no cost):

- ``canvas``: the embedded world, by the judges ``canvas`` and ``clip:canvas-clip``, all images of the suite.
- ``sd``: Stable Diffusion 1.x at its published widths, with random weights, judged by a CLIP ViT-L/14 with random
  weights. A few images of ``--size`` pixels at ``--steps`` denoising steps. A UNet evaluation, and what an image costs
  besides (prompt, autoencoder), are measured and drawn out to 20 steps. At 512 pixels sampling costs four times as much
  as at 256, and the judge, which sees 224, as much as before.

Seconds of the processor for each image, on which other programs have little effect; ``on the clock`` is the share by
the time that passed: ``sampling``; ``writing`` (encode, digest and write the file); ``judging`` (read the file, what
the judge says, features, CLIP score); ``distances``. The share is that of the last three. Stated apart is what happens
``once``, whatever the number of images: reading judges, digests of weights, distances of sets, the table; with its
share at the suite's own number of images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from _shared import GUIDANCE, STEPS, keep_result, markdown, percent
from diffusers import StableDiffusionPipeline
from transformers import CLIPConfig, CLIPModel

import mu
from mu.diffusion import image_folder
from mu.edits.edit import EditInfo, described
from mu.edits.weights import WeightEdit
from mu.evaluation import suites
from mu.evaluation.audit import begin
from mu.evaluation.suites import concept
from mu.models.canvas.architecture import new_tokenizer
from mu.models.clip import clip_processor
from mu.models.diffusion import DiffusionModel, face
from mu.models.formats.architectures import new_component, stable_diffusion_1
from mu.models.parameters import find_parameter
from mu.models.quiet import quiet_libraries

NAME = "neon"
PARTS = ("writing", "judging", "distances")
SUITE_IMAGES = 2 * (10 * 4 + 6 * 4 * 4 + 200)
"""Images of both columns that the suite makes for one concept by its own settings."""


TIMES = {"processor": time.process_time, "clock": time.perf_counter}


class Clock:
    """Seconds by part, each by the processor and by the clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {kind: defaultdict(float) for kind in TIMES}

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        began = {kind: read() for kind, read in TIMES.items()}
        yield
        for kind, read in TIMES.items():
            self.seconds[kind][part] += read() - began[kind]

    def call(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            with self.running(part):
                return work(*args, **options)

        return timed

    def each(self, part: str, work: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The same for an iterator: the time until each of its items."""

        def timed(*args: Any, **options: Any) -> Iterator[Any]:
            items = work(*args, **options)
            while True:
                with self.running(part):
                    item = next(items, None)
                if item is None:
                    return
                yield item

        return timed


@contextmanager
def replaced(module: Any, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, by(before))
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def watched(model: DiffusionModel, clock: Clock) -> Iterator[list[int]]:
    """Time the parts of `mu evaluate` inside the block. Yields the batch sizes of the UNet's evaluations, so far."""
    evaluations = list[int]()
    places = [
        (image_folder, "generate_batches", lambda work: clock.each("sampling", work)),
        (image_folder, "_write_batch", lambda work: clock.call("writing", work)),
        (concept, "Column", lambda work: clock.call("judging", work)),
        (concept, "distances", lambda work: clock.call("distances", work)),
    ]
    hook = model.backbone.register_forward_hook(lambda _, given, __: evaluations.append(len(given[0])))
    with ExitStack() as stack:
        for module, name, by in places:
            stack.enter_context(replaced(module, name, by))
        stack.enter_context(replaced(model.backbone, "forward", lambda work: clock.call("UNet", work)))
        stack.callback(hook.remove)
        yield evaluations


def measured(model: DiffusionModel, folder: Path, steps: int, **options: Any) -> dict[str, Any]:
    """What each image of the suite costs, at `STEPS` steps if fewer were made."""
    name = next(f"unet.{n}" for n, _ in model.backbone.named_parameters() if n.endswith("attn2.to_k.weight"))
    shift = 1e-3 * torch.randn(find_parameter(model, name).shape, generator=torch.Generator().manual_seed(0))
    edit = WeightEdit({name: shift}, EditInfo("random", (NAME,), **described(model, [name])))
    edit.save(folder / "edit.safetensors")
    run = begin(folder / "run", model, edits=[folder / "edit.safetensors"])
    clock = Clock()
    with watched(model, clock) as evaluations, clock.running("whole"):
        suites.evaluate(run, "concept", model, edit, steps=steps, guidance=GUIDANCE, **options)
    images = sum(1 for _ in (run.answers / "concept").rglob("*.png"))
    steps_made, needed = (len(model.new_scheduler(count).timesteps) for count in (steps, STEPS))
    times = {kind: _shares(seconds, images, needed / steps_made) for kind, seconds in clock.seconds.items()}
    return {
        "images": images, "UNet evaluations": len(evaluations), "steps made": steps_made, "steps told": needed,
        **times, "threads": torch.get_num_threads(),
    }  # fmt: skip


def _shares(seconds: Mapping[str, float], images: int, drawn_out: float) -> dict[str, Any]:
    """The cost of an image, and shares of sampling; the UNet's time is ``drawn_out`` to the steps of the suite."""
    sampling = (seconds["sampling"] - seconds["UNet"] + seconds["UNet"] * drawn_out) / images
    each = {part: seconds[part] / images for part in PARTS}
    once = seconds["whole"] - seconds["sampling"] - sum(seconds[part] for part in PARTS)
    return {
        "an image": {"sampling": sampling, **each}, "besides UNet": (seconds["sampling"] - seconds["UNet"]) / images,
        "once": once, "share": sum(each.values()) / sampling,
        "share with once": (sum(each.values()) + once / SUITE_IMAGES) / sampling,
    }  # fmt: skip


def stable_diffusion() -> DiffusionModel:
    """Stable Diffusion 1.x at its published widths, with random weights and the embedded world's tokenizer."""
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 77
    configs = stable_diffusion_1()
    configs["text_encoder"] |= vocabulary(tokenizer)
    with torch.random.fork_rng(), quiet_libraries():
        torch.manual_seed(0)
        parts = {part: new_component(config) for part, config in configs.items()}
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return face(StableDiffusionPipeline(tokenizer=tokenizer, **parts, **extra), "random-sd")


def save_clip(folder: Path) -> str:
    """A CLIP ViT-L/14 with random weights, and its name as a judge."""
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 77
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    sizes = {"image_size": 224, "patch_size": 14}
    words = {**vocabulary(tokenizer), "max_position_embeddings": 77}
    with torch.random.fork_rng(), quiet_libraries():
        torch.manual_seed(0)
        config = CLIPConfig(text_config={**text, **words}, vision_config={**vision, **sizes}, projection_dim=768)
        CLIPModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        clip_processor(224).save_pretrained(folder)
    return f"clip:{folder}"


def vocabulary(tokenizer: Any) -> dict[str, int]:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    return {"vocab_size": len(tokenizer), **ends}


@contextmanager
def few_images(size: int) -> Iterator[None]:
    """The suite makes one target image and two of neighbours, of ``size`` pixels."""

    def cut(asked: Callable[..., Any]) -> Callable[..., Any]:
        def first(*args: Any) -> Any:
            whole = asked(*args)
            return whole._replace(target=whole.target[:1], neighbours=whole.neighbours[:2], everyday=[])

        return first

    with replaced(concept, "asked", cut), replaced(DiffusionModel, "default_size", lambda _: size):
        yield


def table(result: dict[str, Any]) -> str:
    header = ["model", "images", "sampling", *PARTS, "share, %", "once", "with once, %", "with once, on the clock, %"]
    rows = []
    for name, found in result["models"].items():
        own = found["processor"]
        each = [f"{1000 * own['an image'][part]:,.3g} ms" for part in ("sampling", *PARTS)]
        told = [percent(own["share"]), f"{own['once']:.1f} s", percent(own["share with once"])]
        rows.append([name, str(found["images"]), *each, *told, percent(found["clock"]["share with once"])])
    return markdown(header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("canvas", "sd"), default=["canvas", "sd"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[188, 288, 588, 688], help="canvas: the suite's seeds")
    parser.add_argument("--everyday", type=int, default=200, help="canvas: everyday prompts")
    parser.add_argument("--size", type=int, default=256, help="sd: height and width of the images")
    parser.add_argument("--steps", type=int, default=1, help="sd: denoising steps that are made")
    parser.add_argument("--json", type=Path, help="the result; a table of the same name is written beside it")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        if "canvas" in options.models:
            (folder := Path(place, "canvas")).mkdir()
            how = {"judge": "canvas", "clip": "canvas-clip", "seeds": options.seeds, "everyday": options.everyday}
            found["canvas"] = measured(mu.load("canvas"), folder, STEPS, **how)
        if "sd" in options.models:
            (folder := Path(place, "sd")).mkdir()
            model, judge = stable_diffusion(), save_clip(folder / "clip")
            with few_images(options.size):
                told = measured(model, folder, options.steps, judge=judge, retain=["sketch"], seeds=[1])
            found[f"Stable Diffusion 1.x, {options.size} px"] = told
    keep_result(options.json, {"models": found}, table)


if __name__ == "__main__":
    main()
