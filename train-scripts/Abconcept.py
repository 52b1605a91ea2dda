"""Concept ablation with the released program's flags: ``mu erase ca``."""

from __future__ import annotations

import sys

from _training import concept_flags, concept_of, erase, flags, images_of, steps_flag

from mu.core.program import guarded, show_log

HELP = "Concept ablation of a prompt, which separable erasure is compared with; writes the edit to models/abconcept-..."
EXAMPLE = "python train-scripts/Abconcept.py --lr 1e-5 --iter_break 50 --prompt 'Van Gogh' --devices '0,1'"


def main() -> None:
    parser = flags(HELP, EXAMPLE)
    concept_flags(parser)
    steps_flag(parser)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--iter_break", type=int, default=50, help="updates")
    options = parser.parse_args()
    show_log()
    concept, named = concept_of(options)
    folder = images_of(concept)
    settings = {
        "train.lr": options.lr,
        "train.iterations": options.iter_break,
        "pictures.sources": {concept: folder} if folder else {},
    }
    print(erase("ca", concept, f"abconcept-{named}-iter_{options.iter_break}", settings, options).run.folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
