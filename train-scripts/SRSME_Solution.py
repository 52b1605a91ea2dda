"""Write what a scene's delta must protect and the room that remains; SRS_ME.py is the next step."""

from __future__ import annotations

import sys
from pathlib import Path

from _training import at, base, flags, prompts

from mu.core.errors import ConfigError
from mu.core.program import guarded, show_log, tell

HELP = "Write scene/scene<S>/<T>/<index>.json: a concept, the prompts that its delta protects, and the directions left."
EXAMPLE = "python train-scripts/SRSME_Solution.py --erase_cat 'style' --erased_index 0 --em_indexes '1,2' --scenei 1 --timei 0 --device '0'"


def main() -> None:
    parser = flags(HELP, EXAMPLE, runs=False)
    parser.add_argument(
        "--erase_cat", default="object", help="style, object, similar or nudity: the list that the indices refer to"
    )
    parser.add_argument("--erased_index", type=int, required=True, help="the concept's index")
    parser.add_argument(
        "--em_indexes",
        required=True,
        help="indices of protected prompts, comma-separated, in addition to the empty prompt; '' for none",
    )
    parser.add_argument("--scenei", type=int, required=True, help="number of the scene, a folder's name")
    parser.add_argument("--timei", type=int, required=True, help="number of the time, a folder's name")
    options = parser.parse_args()
    show_log()
    tell(options)
    from mu.algorithms.separable_concept_erasure.algorithm import SeparableConceptErasureAlgorithm as SepCE
    from mu.core.files import write_json
    from mu.models import load_diffusion

    listed = prompts(options.erase_cat)
    try:
        indices = [int(part) for part in options.em_indexes.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"--em_indexes takes comma-separated numbers, not {options.em_indexes!r}") from None
    concept = at(listed, options.erased_index, "--erased_index")
    protected = [at(listed, index, "--em_indexes") for index in indices]
    settings = {"concepts": [concept], "protect.prompts": protected, "basis.kind": "elimination"}
    model = load_diffusion(base(options), device=options.devices)
    (capacity,) = SepCE(SepCE.config_class.parse({}).merged(settings), model=model).capacities()
    path = Path("scene") / f"scene{options.scenei}" / str(options.timei) / f"{options.erased_index}.json"
    write_json(path, {"concept": concept, "protected": protected, "directions": capacity.free})
    print(path)


if __name__ == "__main__":
    sys.exit(guarded(main))
