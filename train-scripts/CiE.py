"""Concept-irrelevant erasure with the released program's flags: ``mu erase cie``."""

from __future__ import annotations

import sys

from _training import erase, flags, images_of, one_concept, steps_flag, word

from mu.core.program import WithoutEffect, guarded, show_log

HELP = "Train all cross-attention weights until a prompt adds nothing of its own direction; writes the edit to models/CiE-..."
EXAMPLE = "python train-scripts/CiE.py --threshold 0 --lr 1e-6 --reg_beta 3e-5 --prompt 'Van Gogh' --devices '0,1'"


def main() -> None:
    parser = flags(HELP, EXAMPLE)
    parser.add_argument("--prompt", required=True, help="the concept, used as the prompt")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--iterations", type=int, default=1000, help="the largest number of updates")
    parser.add_argument("--threshold", type=float, default=5e-5, help="tau of the early stop")
    parser.add_argument("--reg_beta", type=float, default=1e-5, help="lambda, weight of the delta's L1 norm")
    steps_flag(parser)
    parser.add_argument("--seperator", action=WithoutEffect, help="has no effect: the prompt is one concept")
    parser.add_argument("--image_size", action=WithoutEffect, help="has no effect: images have the model's own size")
    options = parser.parse_args()
    show_log()
    one_concept(options.prompt)
    name = f"CiE-{word(options.prompt)}-threshold_{options.threshold}-iter_{options.iterations}_beta-{options.reg_beta}"
    settings = {
        "train.lr": options.lr,
        "train.iterations": options.iterations,
        "train.threshold": options.threshold,
        "train.regulariser": options.reg_beta,
        "train.gradients": "summed",
        "data.folder": images_of(options.prompt),
    }
    print(erase("cie", options.prompt, name, settings, options).run.folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
