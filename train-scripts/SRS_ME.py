"""Separable concept erasure of a scene's concept, with the released program's flags: ``mu erase sepce``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from _training import at, erase, flags, images_of, prompts, steps_flag

from mu.core.errors import DataError
from mu.core.program import guarded, show_log

HELP = "Find the delta of a concept. It protects the prompts in scene/scene<S>/<T>/<index>.json of SRSME_Solution.py."
EXAMPLE = (
    "python train-scripts/SRS_ME.py --lr 1e-1 --scale_factor 1e-4 --threshold 1e-4 --reg_beta 1e-6 "
    "--erased_index 0 --scenei 1 "
    "--timei 0 --max_base 691 --erase_cat 'style' --devices '0,1'"
)


def main() -> None:
    parser = flags(HELP, EXAMPLE)
    parser.add_argument(
        "--erase_cat", default="object", help="style, object, similar or nudity: the list that the index refers to"
    )
    parser.add_argument("--erased_index", type=int, required=True, help="the concept's index")
    parser.add_argument("--scenei", type=int, required=True)
    parser.add_argument("--timei", type=int, required=True)
    parser.add_argument("--max_base", type=int, required=True, help="the largest number of basis vectors")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--iter_break", type=int, default=1000, help="the largest number of updates")
    parser.add_argument("--reg_beta", type=float, default=1e-5, help="lambda, weight of the delta's L1 norm")
    parser.add_argument("--threshold", type=float, default=5e-5, help="tau of the early stop")
    parser.add_argument("--scale_factor", type=float, default=1e-2, help="beta, the factor of the basis")
    steps_flag(parser)
    options = parser.parse_args()
    show_log()
    concept = at(prompts(options.erase_cat), options.erased_index, "--erased_index")
    path = Path("scene") / f"scene{options.scenei}" / str(options.timei) / f"{options.erased_index}.json"
    try:
        scene = json.loads(path.read_text(encoding="utf-8"))
        protected, other = list(scene["protected"]), scene["concept"]
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: make it with train-scripts/SRSME_Solution.py and the same indices"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}): make it again with train-scripts/SRSME_Solution.py") from None
    if other != concept:
        raise DataError(
            f"{path} is for {other!r}, but --erased_index {options.erased_index} is {concept!r}: use matching indices"
        )
    name = (
        f"train-sepme-{options.erase_cat}-scene_{options.scenei}-time_{options.timei}-lr_{options.lr}-threshold_{options.threshold}"
        f"-iter_{options.iter_break}-beta_{options.reg_beta}-{options.erased_index}"
    )
    settings = {
        "train.lr": options.lr,
        "train.adam_eps": 1e-8,
        "train.iterations": options.iter_break,
        "train.threshold": options.threshold,
        "train.regulariser": options.reg_beta,
        "train.gradients": "summed",
        "data.folder": images_of(concept),
        "basis.kind": "elimination",
        "basis.scale_factor": options.scale_factor,
        "basis.max_base": options.max_base,
        "protect.prompts": protected,
    }
    print(erase("sepce", concept, name, settings, options).run.folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
