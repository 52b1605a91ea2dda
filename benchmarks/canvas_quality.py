"""How good the embedded world is, on images and seeds that training never saw.

    python benchmarks/canvas_quality.py [--json docs/results/canvas_quality.json] [--card mu/models/canvas/weights/README.md]

Goals: judge at least 99 % on rendered images; images of the base model judged right at least 97 % for style, 95 % for
object and identity; canvas-clip zero-shot and canvas-vlm's answers at least 95 % each; 256 images in under a minute on
two cores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

import mu
from mu.core.files import write_json, write_text
from mu.core.run import versions
from mu.data import canvas as world
from mu.data.canvas import Scene
from mu.data.questions import QUESTIONS
from mu.models import EMBEDDED, WEIGHTS
from mu.models.canvas.training import STEPS
from mu.models.judge import Judge
from mu.models.zero_shot import canvas_tasks

RENDER_SEED, IMAGE_SEED = 20_260_000, 9_000


def shares(judge: Judge, images: torch.Tensor, scenes: list[Scene]) -> dict[str, float]:
    """How often the judge sees what was asked for; each head on the scenes that have its attribute."""
    seen = {head: [] for head in judge.heads}
    for part in images.split(256):
        answers, _ = judge.look(part)
        for head, names in answers.items():
            seen[head] += names
    told = {head: [getattr(scene, head) for scene in scenes] for head in seen}
    return {head: float(np.mean([a == b for a, b in zip(seen[head], told[head], strict=True) if b])) for head in seen}


def measure(per_scene: int, steps: int, guidance: float) -> dict:
    scenes = [scene for scene in world.every_scene() if scene != Scene()] * per_scene
    rendered = torch.from_numpy(np.stack(list(world.images(scenes, RENDER_SEED)))).permute(0, 3, 1, 2).float() / 255
    judge = Judge.open(EMBEDDED["canvas-judge"])
    result = {"rendered": {"n": len(scenes), **shares(judge, rendered, scenes)}}

    model = mu.load("canvas")
    prompts, seeds = [scene.prompt for scene in scenes], [IMAGE_SEED + k for k in range(len(scenes))]
    began = time.perf_counter()
    first = mu.generate(model, prompts[:256], seeds[:256], steps=steps, guidance=guidance)
    seconds = time.perf_counter() - began
    rest = mu.generate(model, prompts[256:], seeds[256:], steps=steps, guidance=guidance)
    images = torch.cat([first, rest])
    result["generated"] = {"n": len(scenes), "steps": steps, "guidance": guidance, **shares(judge, images, scenes)}
    result["seconds_for_256_pictures"] = round(seconds, 1)
    mark = mu.generate(model, [world.WATERMARK_PROMPT], [IMAGE_SEED], steps=steps, guidance=guidance)[0]
    fixed = torch.from_numpy(world.watermark()).permute(2, 0, 1).float() / 255
    result["watermark_mean_difference"] = round(float((mark - fixed).abs().mean()), 4)

    clip = mu.load("canvas-clip")
    result["clip_zero_shot"] = {}
    for task in canvas_tasks(1, 0):
        rows = [k for k, scene in enumerate(scenes) if getattr(scene, task.name)]
        best = clip.zero_shot(rendered[rows], task.prompts).argmax(1).tolist()
        right = [task.classes[b] == getattr(scenes[k], task.name) for b, k in zip(best, rows, strict=True)]
        result["clip_zero_shot"][task.name] = float(np.mean(right))

    vlm = mu.load("canvas-vlm")
    result["vlm_answers"] = {}
    for attribute, (question, *_) in QUESTIONS.items():
        answers = vlm.answer(rendered, [question] * len(scenes))
        right = [answer == world.answer(scene, attribute) for answer, scene in zip(answers, scenes, strict=True)]
        shown = [ok for ok, scene in zip(right, scenes, strict=True) if getattr(scene, attribute)]
        result["vlm_answers"][attribute] = float(np.mean(shown))
    return result


CARD = """# canvas

A small but real Stable Diffusion and what belongs to it, trained from nothing on pictures that `mu.data.canvas` renders:
{styles} styles x {objects} objects, {people} named people in every style, one watermark. 64 x 64 pixels.

| folder | class | parameters |
| --- | --- | --- |
{parts}

All weights are stored in half precision, {megabytes:.1f} MB together. The text encoder of `diffusion/` is the text tower of
`clip/`, the vision tower of `vlm/` is that of `clip/`, and `vlm/` reads its last layer with the class token. The judge was trained on
rendered pictures only, never on generated ones.

## How it was made

    mu canvas train --out DIR --seed 0

Steps of each stage: {steps}. Seed 0, 30,000 rendered pictures, about two hours on two
CPU cores. Libraries when the figures below were measured: {versions}.
The shipped tokenizer's merges were learned by a trainer that broke ties at random; a world trained anew has other token
numbers.

## Measured quality

Made by `python benchmarks/canvas_quality.py --card`; rendered pictures of seed {render_seed}, generated ones of seeds from
{picture_seed} on, which no training saw; {n} pictures each, {ddim} DDIM steps, guidance {guidance}.

| | style | object | identity |
| --- | --- | --- | --- |
| judge on rendered pictures | {rendered} |
| base model's pictures, as the judge reads them | {generated} |
| canvas-clip, zero-shot on rendered pictures | {zero_shot} |
| canvas-vlm, answers about rendered pictures | {answers} |

256 pictures take {seconds} s on the machine that measured. The watermark's picture is met within a mean difference of
{watermark:.3f} (0..1).

## Use

For tests, teaching and comparing methods. It knows nothing of the world outside its renderer, and a method that works on it
has not been shown to work on Stable Diffusion.
"""


def card(result: dict) -> str:
    """The model card, every figure from ``result`` and from the files themselves."""

    def row(shares: dict[str, float]) -> str:
        return " | ".join(f"{100 * shares[head]:.1f} %" for head in ("style", "object", "identity"))

    parts, size = [], 0
    for file in sorted(WEIGHTS.rglob("*.safetensors")):
        size += file.stat().st_size
        config = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
        name = config.get("_class_name") or config["architectures"][0]
        with safe_open(file, "np") as tensors:
            numbers = sum(int(np.prod(tensors.get_slice(key).get_shape())) for key in tensors.keys())  # noqa: SIM118
        parts.append(f"| {file.parent.relative_to(WEIGHTS)} | {name} | {numbers / 1e6:.2f} M |")
    made = result["generated"]
    return CARD.format(
        styles=len(world.STYLES),
        objects=len(world.OBJECTS),
        people=len(world.IDENTITIES),
        parts="\n".join(parts),
        megabytes=size / 1e6,
        steps=", ".join(f"{stage} {count}" for stage, count in STEPS.items()),
        versions=", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        render_seed=RENDER_SEED,
        image_seed=IMAGE_SEED,
        n=made["n"],
        ddim=made["steps"],
        guidance=made["guidance"],
        rendered=row(result["rendered"]),
        generated=row(made),
        zero_shot=row(result["clip_zero_shot"]),
        answers=row(result["vlm_answers"]),
        seconds=result["seconds_for_256_pictures"],
        watermark=result["watermark_mean_difference"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-scene", type=int, default=4, help="pictures of each style x object and style x identity")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--card", type=Path, help="write the model card with these figures")
    options = parser.parse_args()
    result = {**measure(options.per_scene, options.steps, options.guidance), "versions": versions()}
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)
    if options.card:
        write_text(options.card, card(result))


if __name__ == "__main__":
    main()
