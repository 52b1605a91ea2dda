"""Forget-Me-Not by its older flags: ``mu erase fmn``."""

from __future__ import annotations

import sys

from _training import erase, flags, pictures_of, word

from mu.core.script import guarded, show_log

HELP = "Forget-Me-Not of a prompt, as separable erasure was compared with; the edit goes to models/FMN-..."
EXAMPLE = "python train-scripts/FMN.py --lr 1e-5 --iter_break 10 --prompt 'Van Gogh' --devices '0,1'"


def main() -> None:
    parser = flags(HELP, EXAMPLE)
    parser.add_argument("--prompt", required=True, help="the concept, as the prompt that it is")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--iter_break", type=int, default=20, help="updates")
    options = parser.parse_args()
    show_log()
    folder = pictures_of(options.prompt)
    settings = {
        "train.lr": options.lr, "train.iterations": options.iter_break,
        "pictures.sources": {options.prompt: folder} if folder else {},
    }  # fmt: skip
    print(erase("fmn", options.prompt, f"FMN-{word(options.prompt)}-iter_{options.iter_break}", settings, options).folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
