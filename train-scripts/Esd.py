"""ESD with the released program's flags: ``mu erase esd``."""

from __future__ import annotations

import sys

from _training import WithoutEffect, erase, flags, word

from mu.core.program import guarded, show_log

HELP = "Fine-tune away from a prompt with the frozen model's own guidance; writes the edit to models/compvis-word_..."
EXAMPLE = "python train-scripts/Esd.py --prompt 'Van Gogh' --train_method 'xattn' --iterations 1000 --devices '0,1'"
VARIANTS = {"xattn": "esd-x", "noxattn": "esd-u"}


def main() -> None:
    parser = flags(HELP, EXAMPLE)
    parser.add_argument("--prompt", required=True, help="the concept, used as the prompt")
    parser.add_argument(
        "--train_method", required=True, choices=VARIANTS, help="the layers to train: cross-attention, or all others"
    )
    # Like the released program: the default appears in the folder name as sg_3, a given 3 as sg_3.0.
    parser.add_argument("--start_guidance", type=float, default=3)
    parser.add_argument("--negative_guidance", type=float, default=1)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--ddim_steps", type=int, default=50, help="K of the partial denoising")
    parser.add_argument("--seperator", help="the text that separates several concepts in --prompt")
    parser.add_argument("--image_size", action=WithoutEffect, help="has no effect: latents have the model's own size")
    options = parser.parse_args()
    show_log()
    name = (
        f"compvis-word_{word(options.prompt)}-method_{options.train_method}-sg_{options.start_guidance}-ng_{options.negative_guidance}"
        f"-iter_{options.iterations}-lr_{options.lr}"
    )
    settings = {
        "variant": VARIANTS[options.train_method],
        "train.lr": options.lr,
        "train.iterations": options.iterations,
        "start_guidance": options.start_guidance,
        "negative_guidance": options.negative_guidance,
        "denoising_steps": options.ddim_steps,
    }
    concepts = options.prompt.split(options.seperator) if options.seperator else [options.prompt]
    print(erase("esd", concepts, name, settings, options).run.folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
