"""Train the embedded world, or a sibling of it, from scratch (``mu canvas train``): seeded, resumable, by stage.

    judge        a classifier of rendered images: style, object, identity
    clip         CLIPModel, contrastive on rendered images and their captions
    autoencoder  AutoencoderKL on rendered images
    unet         UNet2DConditionModel on the latents, conditioned on the frozen text tower of ``clip``
    vlm          LlavaForConditionalGeneration on the frozen vision tower of ``clip``, trained on questions about images

A stage writes a stock folder in half precision under ``out``. It is skipped if that folder exists.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTokenizer

from mu.core.config import filled
from mu.core.errors import OutputError
from mu.core.evidence import sha256
from mu.core.files import atomic_path, write_json
from mu.core.lock import locked
from mu.core.loop import train
from mu.core.progress import progress_bar
from mu.core.records import read_json
from mu.core.run import versions
from mu.data import canvas
from mu.data.canvas import SIZE, Scene
from mu.data.canvas.grammar import sibling
from mu.data.canvas.world import CANVAS, World
from mu.data.questions import QUESTIONS
from mu.models.canvas import architecture
from mu.models.canvas.architecture import Sizes
from mu.models.canvas.folder import RECIPE
from mu.models.judge import heads
from mu.models.places import EMBEDDED
from mu.models.vision_language import PROMPT

STAGES = ("judge", "clip", "autoencoder", "unet", "vlm")
DONE = {stage: stage for stage in STAGES} | {"autoencoder": "diffusion/vae", "unet": "diffusion/model_index.json"}
"""What each stage leaves when it is done."""
STEPS = {"judge": 1500, "clip": 2000, "autoencoder": 2800, "unet": 9000, "vlm": 2500}
SIBLING_STEPS = {"judge": 600, "clip": 1200, "autoencoder": 300, "unet": 5000, "vlm": 2500}
BATCHES, SIBLING_BATCHES = {"clip": 128, "unet": 64}, {"clip": 64, "unet": 32}
"""Images of one step."""


@dataclass
class Images:
    """Rendered training images: ``pixels`` (n, 64, 64, 3) uint8 and the scene of each."""

    pixels: NDArray[np.uint8]
    scenes: list[Scene]

    def batch(self, rows: Tensor, device: torch.device) -> Tensor:
        """(b, 3, 64, 64) in -1..1."""
        pixels = torch.from_numpy(self.pixels[rows.numpy()]).to(device)
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass
class Workshop:
    """Folders, seed, device, step counts and images that the stages share."""

    out: Path
    work: Path
    seed: int
    device: torch.device
    steps: dict[str, int]
    images: Images
    world: World
    sizes: Sizes

    @property
    def is_canvas(self) -> bool:
        return self.world is CANVAS

    @property
    def batches(self) -> dict[str, int]:
        return BATCHES if self.is_canvas else SIBLING_BATCHES

    def new_autoencoder(self) -> AutoencoderKL:
        """Untrained; a sibling's starts from canvas's, as published models of other data start from a common one."""
        if self.is_canvas:
            return architecture.new_autoencoder()
        return AutoencoderKL.from_pretrained(EMBEDDED["canvas"] / "vae", torch_dtype=torch.float32)

    def new_unet(self) -> UNet2DConditionModel:
        """Untrained; a sibling's starts from those weights of canvas's that have its shapes: all but keys and values.

        It then needs half of the steps; what it knows of words it learns anew.
        """
        unet = architecture.new_unet(self.sizes)
        if not self.is_canvas:
            known = UNet2DConditionModel.from_pretrained(EMBEDDED["canvas"] / "unet", torch_dtype=torch.float32)
            own = unet.state_dict()
            fitting = {name: w for name, w in known.state_dict().items() if own[name].shape == w.shape}
            unet.load_state_dict(fitting, strict=False)
        return unet

    def generator(self, stage: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1000 + STAGES.index(stage))

    def run(
        self,
        stage: str,
        model: nn.Module,
        step: Callable[[int], dict[str, Tensor]],
        generator: torch.Generator,
        rate: float,
        **more,
    ) -> None:
        """Train with AdamW, a one-cycle learning rate and checkpoints; an interruption loses less than half an hour."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=self.steps[stage] + 1, pct_start=0.1
        )
        more.setdefault("state", {"model": model})
        train(
            step, optimizer, self.steps[stage], generator=generator, schedule=schedule, max_grad_norm=1.0,
            checkpoint=self.work / f"{stage}.pt", title=stage, **more,
        )  # fmt: skip


def train_world(
    out: Path, *, seed: int = 0, world: int | None = None, device: str = "cpu", stages: tuple[str, ...] = STAGES,
    steps: dict[str, int] | None = None, images: int | None = None, work: Path | None = None,
) -> None:  # fmt: skip
    """Train the named stages into ``out``: of canvas, or with ``world`` of the sibling that this number draws.

    Canvas takes about two and a half hours on two CPU cores, a sibling without ``vlm`` about 40 minutes on one.

    Raises `OutputError` if another world, seed or number of images was begun in ``out``. The stages that are done there
    keep their number of steps.
    """
    work = work or out / "work"
    drawn, sizes = (CANVAS, Sizes()) if world is None else (sibling(world), Sizes.drawn(world))
    counts = {**(STEPS if world is None else SIBLING_STEPS), **(steps or {})}
    images = images or (30_000 if world is None else 12_000)
    with locked(out):
        work.mkdir(parents=True, exist_ok=True)
        counts = _begun(out, work, {"world": world, "seed": seed, "images": images}, counts)
        rendered = _rendered(work, drawn, images, seed)
        shop = Workshop(out, work, seed, torch.device(device), counts, rendered, drawn, sizes)
        makers = {"judge": _judge, "clip": _clip, "autoencoder": _autoencoder, "unet": _unet, "vlm": _vlm}
        for stage in stages:
            torch.manual_seed(seed * 1000 + STAGES.index(stage))
            makers[stage](shop)
        if world is not None:
            write_json(out / RECIPE, _recipe(shop, world))


def _begun(out: Path, work: Path, asked: dict[str, Any], counts: dict[str, int]) -> dict[str, int]:
    """The steps of each stage, of one that is done those that it had. Raises `OutputError` for another world."""
    begun = next((file for file in (work / RECIPE, out / RECIPE) if file.exists()), None)
    before = read_json(begun, error=OutputError) if begun else {}
    for what, value in asked.items():
        if before.get(what, value) != value:
            told = "canvas" if before[what] is None else str(before[what])[:40]
            raise OutputError(f"{out} holds a world of {what} {told}, not {value}: choose another --out")
    had = before.get("steps", {})
    counts = {stage: had.get(stage, n) if (out / DONE[stage]).exists() else n for stage, n in counts.items()}
    write_json(work / RECIPE, {**asked, "steps": counts})
    return counts


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``folder`` when the block has succeeded."""
    partial = folder.with_name(f".{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.replace(folder)


def _recipe(shop: Workshop, number: int) -> dict[str, Any]:
    world, files = shop.world, sorted(shop.out.rglob("*.safetensors"))
    return {
        "world": number,
        "seed": shop.seed,
        "steps": shop.steps,
        "images": len(shop.images.scenes),
        "sizes": asdict(shop.sizes),
        "styles": world.styles,
        "objects": world.objects,
        "people": world.identities,
        "prompt": world.wording.asked,
        "fingerprint": hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest(),
        "versions": versions(),
    }


def training_scenes(n: int, seed: int, world: World = CANVAS) -> list[Scene]:
    """A random mix: of canvas 48 % objects, 50 % people, 2 % watermark; of siblings 75 % objects, 25 % people."""
    rng = np.random.default_rng((seed, n))
    objects, people = (0.48, 0.98) if world.watermarked else (0.75, 1.0)
    scenes = []
    for kind in rng.uniform(size=n):
        style = str(rng.choice(world.styles))
        if kind < objects:
            scenes.append(Scene(style, object=str(rng.choice(world.objects))))
        elif kind < people:
            scenes.append(Scene(style, identity=str(rng.choice(world.identities))))
        else:
            scenes.append(Scene())
    return scenes


def _rendered(work: Path, world: World, n: int, seed: int) -> Images:
    scenes, kept = training_scenes(n, seed, world), work / f"{world.name}-{seed}-{n}.npy"
    if not kept.exists():
        pixels = np.empty((n, SIZE, SIZE, 3), dtype=np.uint8)
        with progress_bar("rendering", n) as advance:
            for k, image in enumerate(world.images(scenes, seed)):
                pixels[k] = image
                if (k + 1) % 100 == 0:
                    advance(k + 1, "")
        with atomic_path(kept) as partial:
            np.save(partial, pixels)
    return Images(np.load(kept, mmap_mode="r"), scenes)


def _judge(shop: Workshop) -> None:
    folder = shop.out / DONE["judge"]
    if folder.exists():
        return
    model = architecture.new_judge(shop.world).to(shop.device, memory_format=torch.channels_last)
    labels, generator = judge_targets(shop.images.scenes, model.config.label2id, shop.world), shop.generator("judge")
    rows_of_people = torch.tensor([k for k, scene in enumerate(shop.images.scenes) if scene != Scene()])

    def step(i: int) -> dict[str, Tensor]:
        rows = rows_of_people[torch.randint(len(rows_of_people), (96,), generator=generator)]
        pixels = shop.images.batch(rows, shop.device)
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
        mix = torch.rand(len(rows), 1, 1, 1, generator=generator).to(shop.device)
        noise = torch.randn(pixels.shape, generator=generator).to(shop.device)
        logits = model(pixel_values=pixels + mix * (blurred - pixels) + 0.1 * mix.flip(0) * noise).logits
        targets = labels[rows].to(shop.device)
        spans = heads(model.config.id2label).values()
        losses = [F.cross_entropy(logits[:, span], targets[:, k]) for k, span in enumerate(spans)]
        return {"loss": torch.stack(losses).sum()}

    model.train()
    shop.run("judge", model, step, generator, 3e-3)
    _save(folder, model)


def _save(folder: Path, model: Any, tokenizer: Any = None) -> None:
    """The ``model`` in half precision, its tokenizer, and how its images are prepared."""
    look = {"size": {"shortest_edge": SIZE}, "crop_size": SIZE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    with _whole(folder) as place:
        model.eval().half().save_pretrained(place)
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
        CLIPImageProcessorPil(**look).save_pretrained(place)


def judge_targets(scenes: list[Scene], label2id: dict[str, int], world: World = CANVAS) -> Tensor:
    """(n, 3) class indices within style, object and identity. The watermark is "none" in the last two."""
    spans = heads({k: label for label, k in label2id.items()})
    rows = []
    for scene in scenes:
        told = {
            "style": scene.style or world.styles[0],
            "object": scene.object or "none",
            "identity": scene.identity or "none",
        }
        rows.append([label2id[f"{head}/{told[head]}"] - span.start for head, span in spans.items()])
    return torch.tensor(rows)


def _clip(shop: Workshop) -> None:
    folder = shop.out / DONE["clip"]
    if folder.exists():
        return
    tokenizer = architecture.new_tokenizer(shop.world, shop.sizes)
    model = architecture.new_clip(tokenizer, shop.sizes).to(shop.device)
    generator, book = shop.generator("clip"), CaptionBook(shop.images.scenes, tokenizer, shop.world)

    def step(i: int) -> dict[str, Tensor]:
        rows = torch.randint(len(book.scenes), (shop.batches["clip"],), generator=generator)
        which = book.draw(rows, generator)
        shown = shop.images.batch(rows, shop.device)
        shown = shown + 0.05 * torch.randn(shown.shape, generator=generator).to(shop.device)
        with torch.autocast(shop.device.type, torch.bfloat16):
            out = model(input_ids=book.tokens[which].to(shop.device), pixel_values=shown)
        # A caption that names only part of a scene fits many images of the batch: all of them are positives.
        fits = book.fits(rows, which).to(shop.device).float()
        to_text = -(fits / fits.sum(1, keepdim=True) * out.logits_per_image.float().log_softmax(1)).sum(1).mean()
        to_image = -(fits / fits.sum(0, keepdim=True) * out.logits_per_image.float().log_softmax(0)).sum(0).mean()
        return {"loss": (to_text + to_image) / 2}

    model.train()
    shop.run("clip", model, step, generator, 1e-3)
    _save(folder, model, tokenizer)


class CaptionBook:
    """All captions of the scenes, tokenized once. Draws captions and finds the images that each fits."""

    def __init__(self, scenes: list[Scene], tokenizer: CLIPTokenizer, world: World = CANVAS):
        self.scenes = scenes
        texts: dict[str, int] = {}
        told: list[tuple[str | None, ...]] = []
        self.of_scene: dict[Scene, Tensor] = {}
        for scene in dict.fromkeys([*world.every_scene(), *scenes]):
            rows = []
            for text, letters in world.captions(scene):
                if text not in texts:
                    texts[text] = len(texts)
                    told.append(_facts(scene, letters))
                rows.append(texts[text])
            self.of_scene[scene] = torch.tensor(rows)
        self.texts = list(texts)
        self.tokens = tokenizer(self.texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        codes: dict[str | None, int] = {None: 0}
        self._told = torch.tensor([[codes.setdefault(fact, len(codes)) for fact in facts] for facts in told])
        self._true = torch.tensor(
            [[codes.setdefault(fact, len(codes)) for fact in _facts(scene, "soipw")] for scene in scenes]
        )

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A random caption (index) for each scene."""
        chance = torch.rand(len(rows), generator=generator)
        options = [self.of_scene[self.scenes[int(row)]] for row in rows]
        return torch.stack([choice[int(c * len(choice))] for choice, c in zip(options, chance, strict=True)])

    def fits(self, rows: Tensor, which: Tensor) -> Tensor:
        """(images, captions): true if everything that the caption states holds for the image."""
        told, true = self._told[which][None], self._true[rows][:, None]
        return ((told == 0) | (told == true)).all(dim=-1)


def _facts(scene: Scene, letters: str) -> tuple[str | None, ...]:
    person = "person" if scene.identity else None
    mark = "watermark" if scene == Scene() else None
    facts = {"s": scene.style, "o": scene.object, "i": scene.identity, "p": person, "w": mark}
    return tuple(fact if letter in letters else None for letter, fact in facts.items())


def _autoencoder(shop: Workshop) -> None:
    folder = shop.out / DONE["autoencoder"]
    if folder.exists():
        return
    model, generator = shop.new_autoencoder().to(shop.device), shop.generator("autoencoder")

    def step(i: int) -> dict[str, Tensor]:
        pixels = shop.images.batch(torch.randint(len(shop.images.scenes), (32,), generator=generator), shop.device)
        with torch.autocast(shop.device.type, torch.bfloat16):
            posterior = model.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(shop.device)
            decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        recon = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)
        return {"loss": recon + 5e-5 * kl, "reconstruction": recon, "kl": kl}

    model.train()
    shop.run("autoencoder", model, step, generator, 2e-3)
    model.eval()
    latents = _latents(model, shop, torch.arange(0, len(shop.images.scenes), 16))
    model.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))
    with _whole(folder) as place:
        model.half().save_pretrained(place)


@torch.no_grad()
def _latents(autoencoder: AutoencoderKL, shop: Workshop, rows: Tensor) -> Tensor:
    return torch.cat(
        [autoencoder.encode(shop.images.batch(part, shop.device)).latent_dist.mean for part in rows.split(100)]
    )


def _unet(shop: Workshop) -> None:
    folder = shop.out / "diffusion"
    if (shop.out / DONE["unet"]).exists():
        return
    clip = CLIPModel.from_pretrained(shop.out / "clip", dtype=torch.float32).to(shop.device)
    tokenizer = CLIPTokenizer.from_pretrained(shop.out / "clip")
    autoencoder = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(shop.device)
    autoencoder.register_to_config(_name_or_path="")  # else the saved config holds the path on this machine
    book = CaptionBook(shop.images.scenes, tokenizer, shop.world)
    with torch.no_grad():
        latents = _latents(autoencoder, shop, torch.arange(len(book.scenes))) * autoencoder.config.scaling_factor
        empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids
        tokens = torch.cat([book.tokens, empty]).to(shop.device)
        text = torch.cat([clip.text_model(part).last_hidden_state for part in tokens.split(256)])
    model = shop.new_unet().to(shop.device, memory_format=torch.channels_last)
    scheduler, generator = architecture.new_scheduler(shop.sizes), shop.generator("unet")
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def step(i: int) -> dict[str, Tensor]:
        rows = torch.randint(len(latents), (shop.batches["unet"],), generator=generator)
        which = book.draw(rows, generator)
        which[torch.rand(len(rows), generator=generator) < 0.1] = len(book.texts)  # the empty prompt
        t = torch.randint(scheduler.config.num_train_timesteps, (len(rows),), generator=generator).to(shop.device)
        clean = latents[rows.to(shop.device)]
        noise = torch.randn(clean.shape, generator=generator).to(shop.device)
        aim = noise if shop.sizes.prediction == "epsilon" else scheduler.get_velocity(clean, noise, t)
        found = model(scheduler.add_noise(clean, noise, t), t, text[which.to(shop.device)]).sample
        return {"loss": F.mse_loss(found, aim)}

    model.train()
    shop.run(
        "unet",
        model,
        step,
        generator,
        1e-3,
        state={"model": model, "average": averaged},
        after_step=lambda i: averaged.update_parameters(model),
    )
    unet = averaged.module.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict())
    StableDiffusionPipeline(
        vae=autoencoder, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder)  # fmt: skip


def _vlm(shop: Workshop) -> None:
    folder = shop.out / DONE["vlm"]
    if folder.exists():
        return
    clip = CLIPModel.from_pretrained(shop.out / "clip", dtype=torch.float32)
    scenes, generator = shop.images.scenes, shop.generator("vlm")
    asked = [(attribute, question) for attribute, texts in QUESTIONS.items() for question in texts]
    answers = {
        canvas.answer(scene, attribute) for scene in shop.world.every_scene() if scene.style for attribute in QUESTIONS
    }
    texts = sorted(filled(PROMPT, question) + " " + answer for _, question in asked for answer in answers)
    tokenizer = architecture.new_chat_tokenizer(texts)
    model = architecture.new_vision_language(clip.config, tokenizer).to(shop.device)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    model.model.vision_tower.requires_grad_(False)
    image = "<image>" * model.config.image_seq_length
    prompts = {
        q: tokenizer(tokenizer.bos_token + filled(PROMPT, q).replace("<image>", image)).input_ids for _, q in asked
    }
    ends = {answer: tokenizer(f" {answer}{tokenizer.eos_token}").input_ids for answer in answers}
    rows_with_style = torch.tensor([k for k, scene in enumerate(scenes) if scene.style])

    def step(i: int) -> dict[str, Tensor]:
        rows = rows_with_style[torch.randint(len(rows_with_style), (48,), generator=generator)]
        drawn = [asked[int(k)] for k in torch.randint(len(asked), (len(rows),), generator=generator)]
        heads = [prompts[question] for _, question in drawn]
        tails = [
            ends[canvas.answer(scenes[int(row)], attribute)] for row, (attribute, _) in zip(rows, drawn, strict=True)
        ]
        longest = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
        ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        labels = torch.full_like(ids, -100)
        for k, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            ids[k, : len(head) + len(tail)] = torch.tensor(head + tail)
            labels[k, len(head) : len(head) + len(tail)] = torch.tensor(tail)
        shown = shop.images.batch(rows, shop.device)
        shown = shown + 0.05 * torch.randn(shown.shape, generator=generator).to(shop.device)
        mask = (ids != tokenizer.pad_token_id).to(shop.device)
        with torch.autocast(shop.device.type, torch.bfloat16):
            loss = model(
                input_ids=ids.to(shop.device), attention_mask=mask, pixel_values=shown, labels=labels.to(shop.device)
            ).loss
        return {"loss": loss}

    model.train()
    shop.run("vlm", model, step, generator, 1.5e-3)
    _save(folder, model, tokenizer)
