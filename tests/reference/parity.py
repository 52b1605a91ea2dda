"""What equals what: each method beside its released program, as `test_parity.py` tests and ``docs/parity.md`` tells.

A row compares this package with tensors that `make_steps.py` computes from the equations of a program or paper.
All of it is in double precision, on a small network of the same kind. The error is relative: the largest difference
over the largest golden value of a tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from mu.algorithms import algorithm
from mu.core import loop
from mu.core.compute import generator
from mu.edits.gatekeeper import Gatekeeper
from mu.edits.gates import FacilitatedTransport
from mu.models.clip import ClipModel
from mu.models.diffusion import Conditioning, DiffusionModel, face
from mu.models.formats import architectures
from mu.training.clip_method import half_cosine, new_optimizer
from tests.conftest import family_member
from tests.reference import make_steps as steps

Found = Mapping[str, Tensor]
CONCEPT = {"concepts": ["neon"]}


@contextlib.contextmanager
def double() -> Iterator[None]:
    """Everything that is made inside the block is in float64, on one thread: the networks are tiny."""
    threads, before = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_num_threads(threads)


@cache
def model() -> DiffusionModel:
    """The network of `make_steps` in a pipeline, in float64."""
    text = {"hidden_size": steps.WIDTH, "intermediate_size": 32}
    small = {"block_out_channels": [8, 16], "attention_head_dim": 2, "norm_num_groups": 4, "cross_attention_dim": 16}
    shell = family_member(architectures.stable_diffusion_1(), "shell", unet=small, text=text)
    parts = {name: getattr(shell.pipeline, name) for name in ("vae", "text_encoder", "tokenizer")}
    extra: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    found = face(StableDiffusionPipeline(unet=steps.unet(), scheduler=steps.pndm(), **parts, **extra), "reference")
    for module in found.components.values():
        module.double()
    found.components["unet"].load_state_dict(steps.unet().state_dict())
    return found


@cache
def golden(name: str) -> dict[str, Tensor]:
    """What the equations of ``make_steps`` give on this machine.

    The noise schedule of all released programs is in float32, and its last bits depend on the processor: steps of
    another machine are about 1e-6 away. The files are those of one machine.
    """
    with double():
        return {key: value.detach() for key, value in steps.STEPS[name]().items()}


def error(found: Found, wanted: Found) -> float:
    """The largest relative difference of a tensor."""
    assert found.keys() == wanted.keys(), (sorted(found), sorted(wanted))
    apart = [
        float((found[name].double() - w.double()).abs().max() / max(float(w.double().abs().max()), 1e-300))
        for name, w in wanted.items()
    ]
    return max(apart)


class Run:
    """What a run leaves, as the golden file keeps it: give `log` to the run, and its shifts to `error`."""

    def __init__(self, name: str):
        self.wanted = golden(name)
        self.losses: list[float] = []

    def log(self, row: Mapping[str, float]) -> None:
        self.losses.append(row["loss"])

    def error(self, shifts: Mapping[str, Tensor]) -> float:
        """The error of ``shifts`` by full name, and of the losses."""
        short = {name.removeprefix("unet."): shift for name, shift in shifts.items()}
        found = {name: short[name] for name in self.wanted if name in short}
        found["norms"] = torch.stack([shift.norm() for _, shift in sorted(short.items())])
        if self.losses:
            found["losses"] = torch.tensor(self.losses)
        return error(found, self.wanted)


def conditioning(*texts: str) -> Conditioning:
    return Conditioning(torch.cat([steps.prompt(text) for text in texts]))


class Images:
    """The k-th image of `make_steps`."""

    def __getitem__(self, k: int) -> Tensor:
        return steps.image(k)

    def __len__(self) -> int:
        return 1000


def method(name: str, preset: str | None, **changes: Any) -> Any:
    """The method by ``preset`` (None: its defaults) with ``changes``, on `model`."""
    chosen = algorithm(name)
    config = chosen.presets[preset] if preset else chosen.config_class.parse({})
    found = chosen(config.merged(CONCEPT).merged(changes), model=model())
    return found


# -- measurements -----------------------------------------------------------------------------------------------------


def uce(preset: str, name: str, **changes: Any) -> float:
    """The delta of each matrix, from the rows of the prompts on."""
    found, given = method("uce", preset, **changes), model()
    with replaced(given, encode=lambda texts: conditioning(*texts)):
        return Run(name).error(found.find_edit().shifts)


@contextlib.contextmanager
def replaced(thing: Any, **attributes: Any) -> Iterator[None]:
    """Give ``thing`` the golden inputs inside the block."""
    for name, value in attributes.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name in attributes:
            delattr(thing, name)


def training(found: Any, name: str) -> float:
    """The losses and the deltas of the whole training."""
    run = Run(name)
    return run.error(found.train(found.parameters(model()), found.step, None, run.log))


def esd(preset: str | None, name: str, **changes: Any) -> float:
    found = method("esd", preset, **{"denoising_steps": 5, "train.iterations": 2, **changes})
    found.nothing, found.encoded = conditioning(""), [conditioning("neon")]
    return training(found, name)


def counts(preset: str) -> bool:
    """Whether a preset counts one update more than its iterations."""
    return preset == "released-comparison"


def ca(preset: str, name: str, **changes: Any) -> float:
    found = method("ca", preset, **{"anchors": ["painting"], "train.iterations": 2 - counts(preset), **changes})
    if found.config.wording == "style":
        pairs = [("painting, in the style of neon", "painting"), *[("in neon's style, painting", "painting")] * 2]
    else:
        pairs = [("neon painting", "painting")]
    if preset == "released":
        assert found.config.pairs() == [pairs]
    found.encoded, found.choices = [[conditioning(*pair) for pair in pairs]], [[range(len(pairs))]]
    found.images = found.priors = [Images()]
    return training(found, name)


def fmn(preset: str, name: str, **changes: Any) -> float:
    found = method("fmn", preset, **{"train.iterations": 2 - counts(preset), **changes})
    if preset == "released":
        found.encoded = [[conditioning("a photo of neon", "")]]
    else:
        found.encoded = [[conditioning("a painting of neon", "a painting of")]]
    found.images, found.words = [Images()], [[steps.FMN_WORDS]]
    return training(found, name)


def null_space(wrong: bool = False) -> float:
    """The basis by elimination, the projector, and the concept's rows inside the null space."""
    from mu.algorithms.separable_concept_erasure.null_space import NullSpace, eliminated

    space = NullSpace.of(steps.protected_rows()[: -1 if wrong else None])
    found = {"basis": eliminated(space.span), "projector": space.directions.T @ space.directions}
    wanted = golden("null_space")
    if wrong:
        found["basis"] = found["basis"][: len(wanted["basis"])]
    return error({**found, "concept": space.project(steps.prompt("neon")[0])}, wanted)


def separation(scale: float = 0.0) -> float:
    """How far keys of protected prompts move by the trained delta, as a share of the erased prompt's."""
    D = golden("sepce")[steps.KEYS]
    E, protected = steps.prompt("neon")[0], steps.protected_rows()
    shifts, _ = separable("released")
    S = shifts[f"unet.{steps.KEYS}"]
    assert error({"D": S}, {"D": D}) < 1e-6
    return float(((protected + scale * E[-1]) @ S.T).abs().max() / (E @ S.T).abs().max())


def separable(preset: str, **changes: Any) -> tuple[dict[str, Tensor], Run]:
    """The dense delta of each layer by SepCE, and the run."""
    from mu.algorithms.separable_concept_erasure.configs import BasisConfig
    from mu.algorithms.separable_concept_erasure.data_handler import SeparableConceptErasureDataHandler
    from mu.algorithms.separable_concept_erasure.model import SeparableShift
    from mu.algorithms.separable_concept_erasure.null_space import Capacity, NullSpace, Room, basis_of
    from mu.algorithms.separable_concept_erasure.trainer import SeparableConceptErasureTrainer

    found, run = method("sepce", preset, **{"train.iterations": 1, **changes}), Run("sepce")
    config: Any = found.config
    data = SeparableConceptErasureDataHandler(config, model())
    data._kept = {text: conditioning(text) for text in ("neon", "")}
    data._images = {"neon": Images()}  # type: ignore[dict-item]
    space = NullSpace.of(steps.protected_rows())
    basis = basis_of(space, steps.prompt("neon")[0], BasisConfig.model_validate(config.basis))
    capacity = Capacity("neon", steps.PROTECTED, (), (), 11, steps.WIDTH, len(basis), len(basis), 1.0, (1.0,), 0.0)
    shift = SeparableShift(model(), Room(space, basis, capacity), found.info(["neon"]))
    trainer = SeparableConceptErasureTrainer(config, model(), data, shift, ["neon"], anchor_moves=False)
    with shift.installed():
        trainer.train("SepCE", log=run.log)
    return {name: f.scale * f.up.detach() @ f.down for name, f in shift.edit.factors.items()}, run


def sepce(preset: str, **changes: Any) -> float:
    shifts, run = separable(preset, **changes)
    return run.error(shifts)


def cie(preset: str, **changes: Any) -> float:
    from mu.algorithms.separable_concept_erasure.data_handler import SeparableConceptErasureDataHandler
    from mu.algorithms.separable_concept_erasure.model import DenseShift
    from mu.algorithms.separable_concept_erasure.trainer import SeparableConceptErasureTrainer

    found, run = method("cie", preset, **{"train.iterations": 1, **changes}), Run("cie")
    data = SeparableConceptErasureDataHandler(found.config, model())
    data._kept = {text: conditioning(text) for text in ("neon", "")}
    data._images = {"neon": Images()}  # type: ignore[dict-item]
    shift = DenseShift(model(), found.info(["neon"]))
    trainer = SeparableConceptErasureTrainer(found.config, model(), data, shift, ["neon"], anchor_moves=True)
    with shift.installed():
        trainer.train("CiE", log=run.log)
        return run.error(shift.finished().shifts)


def spm(preset: str | None, name: str, **changes: Any) -> float:
    """Both losses and the gradients of one layer's factors."""
    from mu.algorithms.semipermeable_membrane.configs import SemipermeableMembraneMethod
    from mu.algorithms.semipermeable_membrane.data_handler import SemipermeableMembraneDataHandler
    from mu.algorithms.semipermeable_membrane.model import SemipermeableMembraneModel
    from mu.algorithms.semipermeable_membrane.trainer import SemipermeableMembraneTrainer
    from mu.edits.edit import EditInfo

    quick = {"train": {"max_denoising_steps": 4}, "prompt": {"dynamic_resolution": False}, "template_name": "neon"}
    config = (SemipermeableMembraneMethod.presets[preset or "objects"]).merged(quick).merged(changes)
    data = SemipermeableMembraneDataHandler(config, model())
    data._kept = {text: conditioning(text) for text in ("neon", "")}
    membrane = SemipermeableMembraneModel(model(), 1, 1.0, generator(0), EditInfo("test", ("neon",)))
    factors = {f"unet.{layer}": pair for layer, pair in steps.spm_factors(model().components["unet"]).items()}
    assert factors.keys() == membrane.edit.factors.keys()
    for layer, (down, up) in factors.items():
        membrane.edit.factors[layer].down.data, membrane.edit.factors[layer].up.data = down, up
    with membrane.trainable() as installed:
        losses = SemipermeableMembraneTrainer(config, membrane, data).step(installed, generator(0))
        pair = membrane.edit.factors[f"unet.{steps.KEYS}"]
        g_down, g_up = torch.autograd.grad(losses["loss"], [pair.down, pair.up])
    both = torch.stack([losses["erase"], losses["anchoring"]]).detach()
    return error({"losses": both, "down": g_down, "up": g_up}, golden(name))


def spm_gate(metric: str = "clipcos_tokenuni") -> float:
    """gamma of four prompts and two concepts."""
    texts = list(steps.GATE_TOKENS)

    def encode(asked: Any) -> Conditioning:
        return replace(conditioning(*asked), tokens=torch.tensor([steps.GATE_TOKENS[text] for text in asked]))

    with replaced(model(), encode=encode):
        gate: Any = FacilitatedTransport(metric=metric)  # type: ignore[arg-type]
        keeper = Gatekeeper(model(), [[text] for text in texts[:2]], [gate] * 2, [1.0] * 2)
        return error({"gates": keeper(encode(texts[2:]))}, golden("spm_gate"))


def clip_losses(temperature: float = 4.0) -> float:
    """L_f of each pair, the contrastive loss of each block, and both gradients."""
    from mu.models.contrastive import contrastive_loss, cosine_loss

    v, t = steps.unit("image").requires_grad_(True), steps.unit("text").requires_grad_(True)
    cosine, contrastive = cosine_loss(v, t), contrastive_loss(v, t, torch.tensor(temperature), 3)
    gradients = {
        f"{name}_gradient": torch.cat(torch.autograd.grad(each.mean(), [v, t]))
        for name, each in (("cosine", cosine), ("contrastive", contrastive))
    }
    found = {"cosine": cosine.detach(), "contrastive": contrastive.detach(), **gradients}
    return error(found, golden("clip_losses"))


def slug(rho: float = 0.1) -> float:
    """Importance, alignment, the Pareto front, and one tensor after a step."""
    from mu.algorithms.single_layer_unlearning_gradient.model import layer_scores, pareto_front

    theta, g_f, g_r = (steps.clip_tensors(kind) for kind in ("theta", "forget", "retain"))
    scores = layer_scores(theta, g_f, g_r)
    front = {score.name for score in pareto_front(list(scores.values()))}
    found = {
        "importance": torch.tensor([scores[name].importance for name in steps.SHAPES]),
        "alignment": torch.tensor([scores[name].alignment for name in steps.SHAPES]),
        "front": torch.tensor([name in front for name in steps.SHAPES]),
        "step": theta["a"] + scores["a"].step(rho) * g_f["a"],
    }
    return error(found, golden("slug"))


def slug_edit(preset: str, name: str, **changes: Any) -> float:
    """From the gradients of batches: importance, alignment and front of all tensors, and what is tried at one step."""
    from mu.algorithms.single_layer_unlearning_gradient import trainer
    from mu.algorithms.single_layer_unlearning_gradient.model import fronts

    def theirs(parameter: str) -> str:
        return parameter.replace("text_encoder.", "text_model.")

    def batches(clip, pairs, parameters, objective, *, block, partial, **_):
        """As `mu.models.contrastive.batch_gradients`, with the golden gradient of each batch."""
        for i, start in enumerate(range(0, len(pairs), block)):
            n = min(block, len(pairs) - start)
            if n == block or partial or objective == "cosine":
                losses = n if objective == "cosine" else 1
                golden_ones = steps.batch(pairs[0], i, {theirs(each): p for each, p in parameters.items()})
                yield {each: losses * golden_ones[theirs(each)] for each in parameters}, losses

    chosen = algorithm("slug")
    found = chosen(chosen.presets[preset].merged(CONCEPT).merged(changes))
    found.model = found.clip = ClipModel(steps.clip(), None, None, "reference")  # type: ignore[arg-type]
    data = SimpleNamespace(gradient_file=lambda *_: None, pairs=lambda kind, _: [kind] * 40)
    with patch.object(trainer, "batch_gradients", batches):
        candidates = found._candidates()
        ((scores, tried),) = found._scored(data, [SimpleNamespace(concept="neon")], candidates)
    delta = {theirs(each): torch.zeros_like(p) for each, p in candidates.items()}
    for each, directions in tried.items():
        delta |= {theirs(moved): scores[each].step(steps.RHO) * g for moved, g in directions.items()}
    front = {score.name for of_tower in fronts(scores).values() for score in of_tower}
    ordered = sorted(scores, key=theirs)
    here = {
        "importance": torch.tensor([scores[each].importance for each in ordered]),
        "alignment": torch.tensor([scores[each].alignment for each in ordered]),
        "front": torch.tensor([each in front for each in ordered]),
        "norms": torch.stack([delta[each].norm() for each in sorted(delta)]),
        "delta": torch.stack([delta[each].flatten()[0] for each in sorted(delta)]),
    }
    return error(here, golden(name))


def clip_training(name: str, masked: bool, decay: float = 0.1) -> float:
    """The weights after three steps up the forget gradient."""
    from mu.algorithms.clip_salun.algorithm import salient
    from mu.training.clip_config import TrainConfig
    from mu.training.clip_method import _masking

    parameters = {each: torch.nn.Parameter(theta) for each, theta in steps.clip_tensors("theta").items()}
    optimizer = new_optimizer(parameters, TrainConfig(lr=1e-3, weight_decay=decay))
    if masked:
        optimizer.register_step_pre_hook(_masking(parameters, salient(steps.clip_tensors("forget"), 0.5)))

    def step(i: int) -> dict[str, Tensor]:
        up = torch.stack([(parameters[each] * g).sum() for each, g in steps.clip_tensors(f"step {i}").items()]).sum()
        return {"loss": -up}

    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: half_cosine(i, 8))
    loop.train(step, optimizer, 3, generator=generator(0), schedule=rate)
    return error({each: p.detach() for each, p in parameters.items()}, golden(name))


def ssd(selection: float = 3.0) -> float:
    """The factor of each weight, for one constant and for the released product."""
    from mu.algorithms.clip_ssd.algorithm import dampened

    F_f, F_r = ({n: g.square() for n, g in steps.clip_tensors(kind).items()} for kind in ("forget", "retain"))
    ways = {"one": [0.4], "product": [0.1, 0.2, 0.4]}
    found = {f"{way}.{n}": dampened(F_f[n], F_r[n], selection, ways[way]) for way in ways for n in F_f}
    return error(found, golden("ssd"))


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """``measure()`` is the error of ``quantity``, at most ``bound``; with ``wrong``, a changed equation, it is more."""

    method: str
    preset: str
    program: str
    """The released program and its version, or the paper."""
    quantity: str
    measure: Callable[..., float]
    wrong: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    bound: float = 1e-11

    def error(self) -> float:
        with double():
            return self.measure(**self.given)

    def control(self) -> float:
        with double():
            return self.measure(**{**self.given, **self.wrong})


UPDATES = "losses and deltas of two updates"
ESD_2023, ESD_2025 = "rohitgandikota/erasing 2704f9a (2023)", "rohitgandikota/erasing ce8d4d9 (2025)"
CA_AUTHORS, FMN_AUTHORS = "nupurkmr9/concept-ablation 045c6f7 (diffusers)", "SHI-Labs/Forget-Me-Not 2767849"
SLUG_AUTHORS = "the released program of SLUG, 59629a2"
FROM_BATCHES = "from gradients of batches: importance, alignment, front, deltas tried"
COMPARED = "the released program of SepCE, 960385a (2024)"
ROWS = (
    Row("uce", "released", "rohitgandikota/unified-concept-editing 18287f6 (2023)", "delta of each matrix", uce,
        {"lamb": 0.501}, {"preset": "released", "name": "uce_2023"}),
    Row("uce", "released-2025", "rohitgandikota/unified-concept-editing 4502388 (2025)", "delta of each matrix", uce,
        {"lamb": 0.501}, {"preset": "released-2025", "name": "uce_2025"}),
    Row("esd", "styles", "the paper, Eq. 7", UPDATES, esd, {"negative_guidance": 1.001},
        {"preset": None, "name": "esd_paper"}),
    Row("esd", "released", ESD_2023, UPDATES, esd, {"sampler": "aligned"}, {"preset": "released", "name": "esd_2023"}),
    Row("esd", "released-2025", ESD_2025, UPDATES, esd, {"latents_from": "edited"},
        {"preset": "released-2025", "name": "esd_2025"}),
    Row("ca", "released-comparison", COMPARED, UPDATES, ca, {"train.counting": "updates"},
        {"preset": "released-comparison", "name": "ca_comparison"}),
    Row("ca", "released", CA_AUTHORS, "losses and deltas of two updates, model-based", ca, {"start_token": "trained"},
        {"preset": "released", "name": "ca_model_based", "train.batch_size": 2}),
    Row("ca", "released with target noise and prior_weight 1", CA_AUTHORS,
        "losses and deltas of two updates, noise-based, with the prior loss", ca, {"prior_weight": 0.9},
        {"preset": "released", "name": "ca_noise_based", "train.batch_size": 2, "target": "noise",
         "prior_weight": 1.0}),
    Row("fmn", "released-comparison", COMPARED, UPDATES, fmn, {"train.gradients": "zeroed"},
        {"preset": "released-comparison", "name": "fmn_comparison"}),
    Row("fmn", "released", FMN_AUTHORS, UPDATES, fmn, {"objective": "attention"},
        {"preset": "released", "name": "fmn_authors"}),
    Row("sepce", "released", COMPARED, "null space: basis, projector", null_space, {"wrong": True}),
    Row("sepce", "released", COMPARED, UPDATES, sepce, {"train.counting": "updates"}, {"preset": "released"}),
    Row("sepce", "released", COMPARED, "change of protected keys, beside the erased ones'", separation,
        {"scale": 1e-3}),
    Row("cie", "released", COMPARED, UPDATES, cie, {"train.regulariser": 4e-5}, {"preset": "released"}),
    Row("spm", "released", "Con6924/SPM 3dd762e", "both losses, gradients of the factors", spm,
        {"prompt.anchor_layout": "paper"}, {"preset": "released", "name": "spm_released"}),
    Row("spm", "objects", "the paper, Eq. 4 and 8", "both losses, gradients of the factors", spm,
        {"train.timestep_map": "aligned"}, {"preset": None, "name": "spm_paper"}),
    Row("spm", "objects", "the paper, section 3.3", "gate gamma", spm_gate, {"metric": "clipcos"}),
    Row("slug", "any", SLUG_AUTHORS, "losses and their gradients", clip_losses,
        {"temperature": 4.01}),
    Row("slug", "any", SLUG_AUTHORS, "importance, alignment, front, step", slug,
        {"rho": 0.101}),
    Row("slug", "clip-released", SLUG_AUTHORS, FROM_BATCHES, slug_edit, {"gradients.compat": ["cumulative"]},
        {"preset": "clip-released", "name": "slug_open_clip"}),
    Row("slug", "stable-diffusion-released", SLUG_AUTHORS, FROM_BATCHES, slug_edit,
        {"gradients.compat": ["cumulative"]}, {"preset": "stable-diffusion-released", "name": "slug_stable_diffusion"}),
    Row("slug", "llava-released", SLUG_AUTHORS, FROM_BATCHES, slug_edit,
        {"layers.compat": ["no_norms", "deepest"]}, {"preset": "llava-released", "name": "slug_llava"}),
    Row("clip-ga", "clip", SLUG_AUTHORS, "weights after three updates", clip_training,
        {"decay": 0.2}, {"name": "ga", "masked": False}),
    Row("clip-salun", "clip", SLUG_AUTHORS, "mask, weights after three updates",
        clip_training, {"masked": False}, {"name": "salun", "masked": True}),
    Row("clip-ssd", "clip", SLUG_AUTHORS, "factor of each weight", ssd,
        {"selection": 2.0}),
)  # fmt: skip


@dataclass(frozen=True)
class Departure:
    """Where the defaults differ from a program; ``switch``: the settings that bring its way back, none if none do.

    ``why``: the reason for what no switch brings back. A ``method`` that is none has switches that are no settings.
    """

    method: str
    there: str
    here: str
    switch: tuple[str, ...] = ()
    why: str = ""


DEPARTURES = (
    Departure("uce", "2023: lamb 0.5 on its command line", "0.1, the default of its function", ("lamb=0.5",)),
    Departure("uce", "2025: the last token of each text, weights 1 and 1, lamb 0.5, nothing preserved",
              "all positions from the last token on", ("tokens=last", "preserve_scale=1.0", "lamb=0.5", "preserve=[]")),
    Departure("uce", "another commit of 2023, bd5fb515: preserve_scale is the larger of 0.1 and 1 / the number of "
              "preserved texts, so 1 for the empty prompt alone", "0.1, as 18287f6", ("preserve_scale=1.0",)),
    Departure("uce", "2023, styles: 1,734 artists of a list are preserved if none are named", "the empty prompt",
              ("preserve=['Monet']",)),
    Departure("uce", "a preserved text that contains an erased concept is kept", "it is left out"),
    Departure("uce", "sums and inverse in float32, for each matrix", "one solution in float64"),
    Departure("esd", "2023: the sampler starts at 961 of 1000, and the UNet is told a level up to three above the "
              "latents' own", "it starts at 980, and the UNet is told the level of the latents", ("sampler=released",)),
    Departure("esd", "2025: the frozen model samples with PNDM; lr 5e-5, 200 updates",
              "the edited model samples with DDIM; 1e-5, 1000",
              ("sampler=model", "latents_from=frozen", "train.lr=5e-5", "train.iterations=200")),
    Departure("esd", "2025: eta 2, counted from the prediction for the concept",
              "the same target has eta 1, counted from the empty prompt's"),
    Departure("esd", "2025: esd-u trains no norm", "all parameters outside the cross-attention",
              ("variant=esd-u-2025",)),
    Departure("esd", "2025: weights and updates in bfloat16", "updates in float32"),
    Departure("esd", "2025: latents of 1024 pixels, also for Stable Diffusion 1.4", "the model's own size"),
    Departure("esd", "2025: --erase_from, a second prompt to erase from", "none"),
    Departure("esd", "a prompt with commas is one prompt", "a prompt for each concept", ("joined=true",)),
    Departure("esd", "several words are drawn at random", "they take turns"),
    Departure("esd", "the program of SepCE's comparison denoises to the end at every step",
              "to a level drawn at random"),
    Departure("ca", "comparison: --iter_break N is N + 1 updates, 9 % more displacement at 10", "N updates",
              ("train.counting=index",)),
    Departure("ca", "authors: keys and values are trained, 32 tensors of Stable Diffusion 1.4", "80 tensors",
              ("parameters=keys-and-values",)),
    Departure("ca", "authors: the start token's keys and values are detached", "they are trained too",
              ("start_token=detached",)),
    Departure("ca", "authors: the target is the trained model's own prediction, or the noise",
              "the frozen model's prediction", ("target=current", "target=noise")),
    Departure("ca", "authors: images of the anchor's prompts, with the concept in a phrase around each",
              "images of the concept", ("noised=anchors", "wording=style")),
    Departure("ca", "authors: the prior is the ordinary loss on the anchor's images",
              "the frozen model's prediction for the anchor", ("prior_weight=1.0", "anchor_weight=0.0")),
    Departure("ca", "authors: AdamW with decay 0.01, gradients clipped to 1, batch 4 on each of two GPUs, lr scaled",
              "Adam, batch 1, summed gradients",
              ("train.weight_decay=0.01", "train.max_grad_norm=1.0", "train.batch_size=8", "train.gradients=zeroed")),
    Departure("ca", "authors: images are resized, cropped and flipped at random; captions come from a language model",
              "whole images of the templates; your own by images.sources"),
    Departure("ca", "authors: memorised images; training of embeddings or of the whole UNet", "none"),
    Departure("fmn", "comparison: --iter_break N is N + 1 updates, 9 % more displacement at 10", "N updates",
              ("train.counting=index",)),
    Departure("fmn", "authors: the norm of the attention to the words", "the published comparison's logits",
              ("objective=attention-norm",)),
    Departure("fmn", "authors: use_pooler, the end token counts as a word of the concept", "only the concept's words",
              ("objective=attention-norm", "words=concept-and-end")),
    Departure("fmn", "authors: the whole UNet is trained, by AdamW with clipped gradients",
              "the cross-attention, by Adam",
              ("parameters=unet", "train.weight_decay=0.01", "train.max_grad_norm=1.0")),
    Departure("fmn", "authors: words learned by textual inversion first", "the concept's own words"),
    Departure("fmn", "authors: random crops of images on disk", "images of the model; your own by images.sources"),
    Departure("sepce", "the basis by elimination times 1e-4, gradients never zeroed, lr 0.1",
              "an orthonormal basis, zeroed gradients (presets styles and released have the program's way)",
              ("basis.kind=elimination", "basis.scale_factor=1e-4", "train.gradients=summed", "train.lr=0.1")),
    Departure("sepce", "the correlation, without a lower bound, in every search",
              "the same; preset calibrated: the distance to the anchor, with the same gradient at first, unless "
              "`train.objective` is correlation"),
    Departure("sepce", "elimination in float32: protected keys move by 1e-6", "in float64: by 1e-15"),
    Departure("sepce", "--iter_break N is N + 1 updates", "N updates", ("train.counting=index",)),
    Departure("sepce", "N up to 10 never ends the training; it ends when 1000 images are used up", "N ends it"),
    Departure("sepce", "images by 100 LMS steps from PNG files, each used once",
              "latents by 50 steps of the model's sampler, noised anew at each use", ("data.steps=100",)),
    Departure("sepce", "January 2024: the regulariser is on the coefficients", "on the deltas, as in the paper"),
    Departure("cie", "--iterations N is N + 1 updates", "N updates", ("train.counting=index",)),
    Departure("cie", "gradients never zeroed", "zeroed (presets styles and released have the program's way)",
              ("train.gradients=summed",)),
    Departure("spm", "the rank is at most a convolution's channels", "at most a linear layer's width too"),
    Departure("spm", "half of the anchors are the empty prompt", "all are drawn",
              ("prompt.anchor_layout=reference",)),
    Departure("spm", "the gate acts squared, several edits with cross terms", "linear, each by itself",
              ("gate.arithmetic=reference",)),
    Departure("spm", "a warm-up longer than the run is never left", "it is a tenth of the run"),
    Departure("spm", "clip_skip and use_template are read and have no effect", "they act"),
    Departure("spm", "no seed", "seed sets all draws"),
    Departure("slug", "each batch has the same weight, also a shorter last one", "each pair",
              ("gradients.compat=['batch_mean']",)),
    Departure("slug", "contrastive loss: a shorter last forget batch counts, in the Hugging Face programs a shorter "
              "last retain batch too", "its pairs are left out, with a warning that counts them",
              ("gradients.compat=['batch_mean']", "gradients.compat=['partial_retain']")),
    Departure("slug", "Hugging Face programs: gradients are never zeroed, and the retain set's are added to the forget "
              "set's", "zeroed", ("gradients.compat=['cumulative']",)),
    Departure("slug", "Hugging Face programs: every caption of both sets is the concept's name", "the pairs' own",
              ("data.caption=concept", "gradients.compat=['constant_retain_caption']")),
    Departure("slug", "the program of its comparison: the retain loss contrasts 32 pairs", "16, as its own program",
              ("gradients.batch_size=32",)),
    Departure("slug", "retain pairs are cropped at random, as in training", "prepared as in evaluation",
              why="the random crops change the gradient from run to run"),
    Departure("slug", "open_clip: q, k and v of an attention are one tensor", "three",
              ("layers.compat=['in_proj']",)),
    Departure("slug", "Hugging Face programs: layer norms and the patch embedding are no candidates", "they are",
              ("layers.compat=['no_norms']",)),
    Departure("slug", "Hugging Face programs: visual_projection counts as language", "as vision",
              why="it is no part of the text encoder that is edited there"),
    Departure("slug", "layers that the edited model does not read can be chosen: the last text layer for SD 2.1, the "
              "last vision layer for LLaVA-1.5", "they are no candidates", why="a change there does nothing"),
    Departure("slug", "open_clip: the reader chooses a tensor of the front", "the one that retains most",
              ("layers.names=['*.3.mlp.fc1.weight']",)),
    Departure("slug", "Hugging Face programs: the front's tensor in the deepest block is taken, and moves with its "
              "siblings (q, k, v or fc1, fc2)", "all of the front are searched; one moves alone",
              ("layers.compat=['deepest']", "layers.compat=['siblings']")),
    Departure("slug", "ten evaluations find the step, doubling, then halving; of several crossings one of them",
              "a grid, then a finer one; the first crossing", ("search.method=reference",)),
    Departure("slug", "all images and all classes are classified at each step",
              "the concept's at each step, the others at the steps that forget", why="the outcome is the same"),
    Departure("mia", "the other pairs are drawn before the members", "after them: values differ by the noise of draws",
              ("mu evaluate --data mia:released",)),
    Departure("models", "open_clip runs ViT-B-32 laion400m_e32 with another activation than in training",
              "the activation of training", ("mu.load(..., compat_gelu='gelu')",)),
    Departure("clip-ft", "retain pairs are cropped at random, also in clip-gaft, clip-salun and clip-ssd",
              "prepared as in evaluation", why="the random crops change the result from run to run"),
    Departure("clip-ga", "the first of ten epochs that forgets is reported, also for clip-ft, clip-gaft and clip-salun",
              "the edit is that of the last epoch", ("train.epochs=1",)),
    Departure("clip-salun", "the mask is that of the mean of the batches' mean gradients", "of the mean over all pairs",
              ("compat=true",)),
    Departure("clip-ssd", "each constant multiplies what the one before left", "each starts from the base weights",
              ("compat=true",)),
    Departure("images", "generate-images.py: all images of a case are one draw of noise",
              "the first has the case's seed and the program's noise, the others seeds of their own"),
)  # fmt: skip
"""``images`` is no method, but the program that makes the images of a list of prompts; ``mia`` the membership inference
of the evaluation, ``models`` how a model is loaded."""
