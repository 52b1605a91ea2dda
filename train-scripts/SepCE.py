"""Separable concept erasure of several concepts, with the released program's flags: ``mu erase sepce --bank``."""

from __future__ import annotations

import sys
from typing import cast

from _training import base, erase, flags, images_of, word

from mu.core.errors import ConfigError
from mu.core.program import guarded, show_log

HELP = "Find one delta per prompt, null on the empty prompt and the others; writes them to the bank models/SepCE-.../"
EXAMPLE = "python train-scripts/SepCE.py --lr 1e-2 --scale_factor 1e-4 --reg_beta 3e-5 --devices '0,1'"
THRESHOLDS = {"VanGogh": 0.0, "Cezanne": 1.5e-4, "Picasso": 0.0}
"""The released program's prompts, each with its tau."""


def main() -> None:
    parser = flags(HELP, EXAMPLE)
    parser.add_argument("--prompts", default=",".join(THRESHOLDS), help="the concepts (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--scale_factor", type=float, default=1e-2, help="beta, the factor of the basis")
    parser.add_argument("--iter_break", type=int, default=1000, help="the largest number of updates per prompt")
    parser.add_argument(
        "--threshold", type=float, help="tau of all prompts (default: 1.5e-4 for Cezanne, 0 for others)"
    )
    parser.add_argument("--reg_beta", type=float, default=1e-5, help="lambda, weight of the delta's L1 norm")
    options = parser.parse_args()
    show_log()
    from mu.edits.bank_folder import BankFolder
    from mu.edits.edit import Edit
    from mu.models import load_diffusion

    concepts = [part.strip() for part in options.prompts.split(",") if part.strip()]
    if not concepts or len(set(concepts)) < len(concepts):
        raise ConfigError(f"--prompts {options.prompts!r} must name at least one concept, and each only once")
    name = f"SepCE-{'-'.join(map(word, concepts))}-iter_{options.iter_break}-beta_{options.reg_beta}"
    bank = BankFolder(options.models / name)
    if bank.json.exists() and not options.overwrite:
        kept = {entry.concept for entry in bank.read().edits}
        if not options.resume:
            bank.refuse(concepts)
    else:
        kept = set()
    model, edits = load_diffusion(base(options), device=options.devices), []
    for concept in concepts:
        tau = THRESHOLDS.get(concept, 0.0) if options.threshold is None else options.threshold
        settings = {
            "train.lr": options.lr,
            "train.adam_eps": 1e-8,
            "train.iterations": options.iter_break,
            "train.threshold": tau,
            "train.regulariser": options.reg_beta,
            "train.gradients": "summed",
            "data.folder": images_of(concept),
            "basis.kind": "elimination",
            "basis.scale_factor": options.scale_factor,
            "protect.prompts": [other for other in concepts if other != concept],
        }
        found = erase("sepce", concept, f"{name}-runs/{word(concept)}", settings, options, model)
        edits.append(cast(Edit, found.edit))
    if bank.json.exists() and options.overwrite:
        bank.remove(*(entry.concept for entry in bank.read().edits), reason="--overwrite")
    bank.add(model, *(edit for edit in edits if edit.concept() not in kept))
    print(bank.folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
