"""Build a concept's forget set from LAION shards: ``mu data forget-set`` with its older flags."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from mu.core.errors import DataError
from mu.core.program import Parser, WithoutEffect, guarded, show_log, tell
from mu.data.forget_set import make_forget_set, unpack

log = logging.getLogger("mu")

HELP = (
    "Collect the images and captions of one concept in <data_root>/tar_files/<Name>.tar, and as files in "
    "<data_root>/laion/laion400m/<Name>/."
)
EXAMPLE = 'example: python src/clip/a0_create_tar.py --name "Elon Musk" --n_imgs 500'


def main() -> None:
    flags = Parser(description=HELP, epilog=EXAMPLE)
    flags.add_argument("--data_root", type=Path, default=Path("data"), help="holds laion/laion400m/*.tar")
    flags.add_argument("--name", required=True, help="the concept, with spaces or underscores")
    flags.add_argument(
        "--workers", action=WithoutEffect, help="has no effect: captions are read first, so one process is enough"
    )
    flags.add_argument("--n_imgs", type=int, default=500, help="the largest number of images (default: 500)")
    flags.add_argument("--overwrite", action="store_true", help="replace an existing file with different content")
    options = flags.parse_args()
    show_log()
    tell(options)
    shards = options.data_root / "laion" / "laion400m"
    if not any(shards.glob("*.tar")):
        raise DataError(
            f"{shards} holds no tar files: put img2dataset's shards of LAION-400M in it, or render some: "
            f"mu canvas render shards {shards} --n 1000"
        )
    out = options.data_root / "tar_files"
    made = make_forget_set(options.name, shards, out, options.n_imgs, overwrite=options.overwrite).path
    log.info("the same images and captions as files: %s", unpack(made, shards / made.stem))
    print(made)


if __name__ == "__main__":
    sys.exit(guarded(main))
