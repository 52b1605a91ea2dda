"""Suite ``canvas``: a small UnlearnCanvas, on the styles and objects of the embedded world.

Answer set: every style x object x seed, prompt ``A {object} image in {style} style.``, 20 steps, guidance 4. The judge,
a classifier trained on rendered images only, names the style and object of each image. Protocol ``canvas/1``, whose
shares and means have 95 % intervals, and in the edited column those of the change, paired by prompt and seed:

- UA, IRA, CRA as in `mu.evaluation.metrics.unlearning`. For an erased style, UA = 1 - style accuracy on its images,
  IRA = mean style accuracy over the other styles, CRA = mean object accuracy over all images. For an erased object,
  style and object change places. The base model's row has the same three numbers without the edit. Of concepts erased
  together, UA is the mean over them, each on images that name no other, and IRA is of the kind of the first; images
  that name one of the other kind enter neither IRA nor CRA. The protocol's name then lists them.
- CLIP score of the retained images with their prompts, by the world's own CLIP.
- Fréchet distance between the judge's features of the retained images and of the base model's images of the same
  prompts at other seeds. The base's own row is the floor: the distance from sampling alone.
- replacement: the most frequent other answer of the judge on images that ask for the concept, with the share of each
  in ``per_item``. It says what stands in the concept's place.
- On neutral prompts, which name nothing of the concept's kind (`neutral_prompts`), at the same seeds. unasked: share of
  images on which the judge sees the concept; an edit can write a concept where nobody asked for it. neutral distance:
  LPIPS-like distance, in the judge's feature maps, of the images from the base's.

Other diffusion models are refused, whatever their name: the judge knows only this world.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mu.core.concept import says
from mu.core.errors import DataError, ModelError, quoted, titled
from mu.core.files import sha256
from mu.core.lock import locked
from mu.core.metrics import scored
from mu.core.progress import progress_bar
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.data.canvas import OBJECTS, STYLES, Scene
from mu.data.canvas.layouts import folder_name
from mu.diffusion.image_files import read_images
from mu.diffusion.image_folder import ImageRow, borrow, claim, content_hash, made_in, scheduler_hash, write_images
from mu.edits.bank import Bank
from mu.edits.edit import Edit, described, is_base
from mu.edits.gates import gate_to_json
from mu.evaluation.answers import bases_beside
from mu.evaluation.comparing import clip_fits, distance_of, mean, share
from mu.evaluation.doubt import doubtful, unmeasured
from mu.evaluation.metrics.frechet import frechet_jackknife
from mu.evaluation.metrics.jackknife import Squared
from mu.evaluation.metrics.lpips import lpips
from mu.evaluation.metrics.unlearning import Hits, Prediction, scores_of, unlearning_hits
from mu.evaluation.suites import OTHER_SEEDS
from mu.models import EMBEDDED, load_diffusion
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.formats.checkpoint import read_state_dict
from mu.models.judge import Judge
from mu.models.parameters import BEFORE_EDITS, fingerprint, select
from mu.models.quiet import quiet_libraries

PROTOCOL, STEPS, GUIDANCE = "canvas/1", 20, 4.0
Kind = Literal["style", "object"]
NEUTRAL = ("an image", "a person", "a portrait of a person", "a picture of a cat")


def evaluate(
    run: RunDirectory, model: DiffusionModel, edit: Edit, *, seeds: Sequence[int], base_answers: Path | None = None
) -> tuple[Table, dict[str, Any]]:
    """Make the missing images of the answer sets and score all. Returns the table and how it was measured.

    Raises `ModelError` if the base is not embedded.
    """
    require_embedded(model)
    with quiet_libraries():
        judge = Judge.open(EMBEDDED["canvas-judge"], model.device)
        clip = ClipModel.open(EMBEDDED["canvas-clip"], "canvas-clip", device=model.device)
    erased = request(edit.info.concepts, judge)
    protocol = protocol_of(erased)
    cells = [
        Scene(style, object=name)
        for style, name in product(judge.classes["style"], judge.classes["object"])
        if name != "none"
    ]
    hits_of([Prediction(*map(str, (s.style, s.object) * 2)) for s in cells], erased)  # refuses before images are made
    asked = [(scene, seed) for scene in cells for seed in seeds]
    rows = [row_of(scene, seed) for scene, seed in asked]
    neutral = [(neutral_row(prompt, seed), kinds) for prompt, kinds in neutral_of(erased).items() for seed in seeds]
    unnamed = [row for row, _ in neutral]
    reference = [row_of(scene, seed + OTHER_SEEDS) for scene, seed in asked]
    base, edited = base_answers or run.answers / "base", run.answers / "edited"
    recipe = answers_recipe(model)
    with locked(base):  # other runs may share it
        claim(base, recipe)
        borrow(() if base_answers else bases_beside(run, "canvas"), base, [*rows, *unnamed, *reference])
        before, before_neutral, at_other_seeds = answers(model, base, [rows, unnamed, reference], "base answers")
    claim(edited, {**recipe, "edit": content_hash(edit)})
    with Bank(model, [edit]).applied():
        after, after_neutral = answers(model, edited, [rows, unnamed], "edited answers")
    kept = [k for k, (scene, _) in enumerate(asked) if not {scene.style, scene.object} & erased.keys()]
    floor = judge.look(at_other_seeds[kept])[1]

    def look(images: Tensor, unasked: Tensor) -> Looked:
        seen, features = judge.look(images)
        told = zip(asked, seen["style"], seen["object"], strict=True)
        predictions = [Prediction(str(scene.style), str(scene.object), style, name) for (scene, _), style, name in told]
        written = judge.look(unasked)[0]
        instead = [answer for name, kind in erased.items() for answer in seen_of(predictions, name, kind, erased)]
        return Looked(
            hits_of(predictions, erased),
            [float(any(written[kind][k] in erased for kind in kinds)) for k, (_, kinds) in enumerate(neutral)],
            clip_fits(clip, clip.encode_images(images[kept]).cpu(), [rows[k] for k in kept]),
            frechet_jackknife(features[kept], floor),
            replacement(instead, erased, protocol),
            doubtful_of(predictions, erased),
        )

    own, other = look(before, before_neutral), look(after, after_neutral)
    drift = mean("neutral distance", lpips(before_neutral, after_neutral, judge.feature_maps).tolist(), protocol)
    judged_by = {name: sha256(EMBEDDED[name]) for name in ("canvas-judge", "canvas-clip")}
    how: dict[str, Any] = {
        "steps": STEPS,
        "guidance": GUIDANCE,
        "gate": gate_to_json(edit.info.gate),
        "judges": judged_by,
    }
    how |= unmeasured(edit.info.concepts, lambda concept: any(says(concept, name) for name in erased))
    return {"base": own.scores(), "edited": [*other.scores(own), drift]}, how


class Looked(NamedTuple):
    """What the judges say of one column's images."""

    hits: Hits
    unasked: list[float]
    """1 for each image of a neutral prompt that shows the concept, else 0."""
    fits: list[float]
    """The CLIP score of each retained image."""
    distance: Squared
    """The Fréchet distance of the retained images."""
    replacement: Score
    doubt: str = ""
    """Why the judge cannot tell whether the concept is gone, seen on the base's images."""

    def scores(self, base: Looked | None = None) -> list[Score]:
        """All with intervals; with the ``base``, also those of the change at equal prompts and seeds."""
        protocol = self.replacement.protocol
        ua, ira, cra = scores_of(self.hits, protocol, before=base.hits if base else None)
        return [
            replace(ua, doubt=base.doubt if base else self.doubt),
            ira,
            cra,
            share("unasked", self.unasked, protocol, before=base.unasked if base else None),
            mean("CLIP score", self.fits, protocol, before=base.fits if base else None),
            distance_of("Fréchet distance", self.distance, len(self.fits), protocol, before=base and base.distance),
            self.replacement,
        ]


def protocol_of(erased: Mapping[str, Kind]) -> str:
    """`PROTOCOL`, and the concepts if several are measured together: their numbers are no others' equals."""
    together = " + ".join(f"{name} ({kind})" for name, kind in erased.items())
    return f"{PROTOCOL}, {together}" if len(erased) > 1 else PROTOCOL


def hits_of(predictions: Sequence[Prediction], erased: Mapping[str, Kind]) -> Hits:
    """What enters UA, IRA and CRA if all of ``erased`` (name: its kind) are erased together.

    Raises `DataError` if no image asks for one of them without another, or nothing is left to retain.
    """
    (first, kind), *_ = erased.items()
    other = [name for name, own in erased.items() if own != kind]
    free = [each for each in predictions if not {each.style, each.object} & {*other}]
    hits = unlearning_hits(free, first, kind, left_out=[name for name in erased if name != first])
    if not (hits.within and hits.across):
        raise DataError(f"suite canvas has nothing left to retain beside {', '.join(map(quoted, erased))}: erase fewer")
    gone = {
        name: [answer == name for answer in seen_of(predictions, name, own, erased)] for name, own in erased.items()
    }
    return hits._replace(gone=gone)


def seen_of(predictions: Sequence[Prediction], name: str, kind: Kind, erased: Container[str]) -> list[str]:
    """The judge's answers on the images that ask for ``name``, of this kind, and for nothing else of ``erased``."""
    other: Kind = "object" if kind == "style" else "style"
    found = [
        str(getattr(each, f"{kind}_seen"))
        for each in predictions
        if getattr(each, kind) == name and getattr(each, other) not in erased
    ]
    if not found:
        raise DataError(
            f"suite canvas cannot measure {quoted(name)}: each of its images also asks for another erased concept; "
            "measure fewer at once"
        )
    return found


def doubtful_of(predictions: Sequence[Prediction], erased: Mapping[str, Kind]) -> str:
    """The doubt if the judge does not see one of ``erased`` in the base, or sees it in another concept's images."""
    for name, kind in erased.items():
        others = {
            each: seen_of(predictions, each, kind, erased)
            for each in dict.fromkeys(str(getattr(p, kind)) for p in predictions)
            if each not in erased
        }
        if doubt := doubtful({name: name}, {name: seen_of(predictions, name, kind, erased)}, others):
            return doubt
    return ""


def replacement(seen: Sequence[str], erased: Collection[str], protocol: str = PROTOCOL) -> Score:
    """The share of the most frequent answer in ``seen`` that is none of ``erased``, and of each in ``per_item``."""
    others = {name: n / len(seen) for name, n in Counter(seen).most_common() if name not in erased}
    return scored("replacement", max(others.values(), default=0.0), len(seen), protocol, others)


def require_embedded(model: DiffusionModel) -> None:
    """Raise `ModelError` if ``model`` is not the embedded one: the judge and the prompts belong to its world."""
    if not is_embedded(model):
        raise ModelError(
            f"suite canvas measures only the embedded model, and {titled(model.name)} has other weights: "
            "use --suite concept"
        )


def seems_embedded(model: DiffusionModel) -> bool:
    """Whether one layer of ``model`` is the embedded model's, up to half precision: enough to choose this suite."""
    name = "conv_out.weight"
    own = read_state_dict(EMBEDDED["canvas"] / "unet" / "diffusion_pytorch_model.safetensors")[name].float()
    layer = getattr(model.backbone.get_parameter(name), BEFORE_EDITS, model.backbone.get_parameter(name))
    return own.shape == layer.shape and torch.allclose(own, layer.detach().float().cpu(), rtol=1e-2, atol=1e-4)


def is_embedded(model: DiffusionModel) -> bool:
    """Whether the base weights of ``model``, in any precision, are those of the embedded model."""
    names = list(select(model, "*"))
    embedded = load_diffusion("canvas", device="cpu")
    return names == list(select(embedded, "*")) and is_base(model, names, described(embedded, names)["fingerprint"])


def request(concepts: Sequence[str], judge: Judge) -> dict[str, Kind]:
    """The style or object that each of ``concepts`` names, with its kind: "neon style" is a style, "neon".

    Raises `DataError` if they name none.
    """
    kinds: tuple[Kind, ...] = ("style", "object")
    classes = [(name, kind) for kind in kinds for name in judge.classes[kind]]
    named = (next(((name, kind) for name, kind in classes if says(concept, name)), None) for concept in concepts)
    if found := dict(each for each in named if each):
        return found
    known = ", ".join((*judge.classes["style"], *judge.classes["object"][:-1]))
    raise DataError(
        f"suite canvas measures its own styles and objects, and {quoted(', '.join(concepts))} names none of: {known}"
    )


def answers_recipe(model: DiffusionModel) -> dict[str, Any]:
    """All that determines the base's answers except prompts and seeds: every weight, and how it is used."""
    return {
        "model": fingerprint(model, select(model, "*")),
        "scheduler": scheduler_hash(model),
        **model.loading,
        **made_in(model),
        "steps": STEPS,
        "guidance": GUIDANCE,
    }


def neutral_prompts(kind: Kind) -> tuple[str, ...]:
    """Prompts that name no style (``kind`` style) or no object: `NEUTRAL`, and each concept of the other kind alone."""
    other = (
        [f"a picture of a {name}" for name in OBJECTS] if kind == "style" else [f"a {name} picture" for name in STYLES]
    )
    return (*NEUTRAL, *other)


def neutral_of(erased: Mapping[str, Kind]) -> dict[str, list[Kind]]:
    """The neutral prompts of the kinds of ``erased`` that say none of them, each with the kinds that it leaves open."""
    found: dict[str, list[Kind]] = {}
    for kind in dict.fromkeys(erased.values()):
        for prompt in neutral_prompts(kind):
            if not any(says(prompt, name) for name in erased):
                found.setdefault(prompt, []).append(kind)
    return found


def neutral_row(prompt: str, seed: int) -> ImageRow:
    """The image of a neutral prompt."""
    return ImageRow(f"{folder_name(prompt)}_seed{seed}.png", prompt, seed)


def row_of(scene: Scene, seed: int) -> ImageRow:
    """The image of a style x object."""
    name = f"{folder_name(str(scene.style))}_{folder_name(str(scene.object))}_seed{seed}.png"
    return ImageRow(name, scene.prompt, seed)


def answers(
    model: DiffusionModel, folder: Path, groups: Sequence[Sequence[ImageRow]], title: str
) -> tuple[Tensor, ...]:
    """The images of each group, (n, 3, H, W) in 0..1; images already in ``folder`` are not made again."""
    rows = [row for group in groups for row in group]
    with progress_bar(title, len(rows)) as advance:
        write_images(
            model, rows, folder, steps=STEPS, guidance=GUIDANCE, resume=True, progress=lambda done, _: advance(done, "")
        )
    return read_images([folder / row.name for row in rows]).split([len(group) for group in groups])
