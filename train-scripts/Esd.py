"""ESD with the released program's flags: ``mu erase esd``."""

from __future__ import annotations

import sys
from pathlib import Path

from _training import CKPT, concept_flags, concept_of, erase, flags

from mu.core.program import WithoutEffect, guarded, note_flag, show_log

HELP = "Fine-tune away from a prompt with the frozen model's own guidance; writes the edit to models/compvis-word_..."
EXAMPLE = "python train-scripts/Esd.py --prompt 'Van Gogh' --train_method 'xattn' --iterations 1000 --devices '0,1'"
VARIANTS = {"xattn": "esd-x"} | {
    name: name
    for name in (
        "noxattn", "selfattn", "full", "notime", "xlayer", "selflayer", "esd-x", "esd-u", "esd-all", "esd-x-strict",
        "esd-u-2025",
    )
}  # fmt: skip
"""The released programs' names of what is trained, as `ESDConfig.variant`."""
WORDS = {
    "allartist": "Kelly Mckernan, Thomas Kinkade, Ajin Demi Human, Alena Aenami, Tyler Edlin, Kilian Eng",
    "i2p": "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood",
    "artifact": "ugly, tiling, poorly drawn hands, poorly drawn feet, poorly drawn face, out of frame, mutation, mutated, "
    "extra limbs, extra legs, extra arms, disfigured, deformed, cross-eye, body out of frame, blurry, bad art, bad "
    "anatomy, blurred, text, watermark, grainy",
}
"""The released program's names of whole lists of words, and the prompts that they stand for."""


def main(iterations: int = 50, ckpt: Path = CKPT) -> None:
    """Run the program with these defaults."""
    parser = flags(HELP, EXAMPLE, ckpt=ckpt)
    concept_flags(parser, f"the concept, used as the prompt; {', '.join(WORDS)}: the released program's lists of words")
    parser.add_argument(
        "--train_method", required=True, choices=VARIANTS, help="the layers to train, by the released programs' names"
    )
    # Like the released program: the default appears in the folder name as sg_3, a given 3 as sg_3.0.
    parser.add_argument("--start_guidance", type=float, default=3)
    parser.add_argument("--negative_guidance", type=float, default=1)
    parser.add_argument("--iterations", type=int, help=f"updates (default: {iterations})")
    parser.add_argument("--iter_break", type=int, help="stop after this many updates, if --iterations are more")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--ddim_steps", type=int, default=50, help="K of the partial denoising")
    parser.add_argument("--seperator", help="the text that separates several concepts in --prompt")
    parser.add_argument("--image_size", action=WithoutEffect, help="has no effect: latents have the model's own size")
    options = parser.parse_args()
    show_log()
    concept, named = concept_of(options, lists=True)
    updates = min((n for n in (options.iterations, options.iter_break) if n is not None), default=iterations)
    name = (
        f"compvis-word_{named}-method_{options.train_method}-sg_{options.start_guidance}-ng_{options.negative_guidance}"
        f"-iter_{updates}-lr_{options.lr}"
    )
    settings = {
        "variant": VARIANTS[options.train_method],
        "train.lr": options.lr,
        "train.iterations": updates,
        "start_guidance": options.start_guidance,
        "negative_guidance": options.negative_guidance,
        "denoising_steps": options.ddim_steps,
    }
    concept = WORDS.get(concept, concept)
    if options.seperator and options.seperator not in concept:
        note_flag(options, "--seperator has no effect: the prompt does not contain it")
    concepts = [part for part in map(str.strip, concept.split(options.seperator or ",")) if part] or [concept]
    settings["joined"] = len(concepts) > 1 and not options.seperator
    print(erase("esd", concepts, name, settings, options).run.folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
