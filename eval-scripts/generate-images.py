"""Generate images of a prompt list with an edited model and the released program's flags: ``mu generate --prompts``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import cast

from _sampling import flags, opened, paint, sample_seed

from mu.core.errors import ConfigError
from mu.core.program import guarded, show_log

log = logging.getLogger("mu")

HELP = "Generate images for each row of a CSV (prompt, evaluation_seed, case_number) in <save_path>/<model_name>/<case>_<k>.png."
EXAMPLE = (
    "python eval-scripts/generate-images.py "
    "--model_name='compvis-word_VanGogh-method_xattn-sg_3-ng_1-iter_1000-lr_1e-05' "
    "--prompts_path 'stable-diffusion/art_prompts.csv' --save_path 'evaluation_folder' --num_samples 10"
)


def main() -> None:
    parser = flags(HELP, EXAMPLE, samples=1)
    parser.add_argument(
        "--model_name",
        required=True,
        help="a folder in models/ or stable-diffusion/ that holds a run, a bank or diffusers-....pt; or "
        "SD-v1-4, SD-V2, "
        "SD-V2-1, canvas",
    )
    parser.add_argument(
        "--prompts_path",
        type=Path,
        required=True,
        help="the CSV; columns are found by name: also width and height, others are ignored",
    )
    options = parser.parse_args()
    show_log()
    from mu.data.prompts import read_prompts, seeded
    from mu.diffusion.image_folder import ImageRow

    listed = seeded(read_prompts(options.prompts_path), 0, options.prompts_path)
    cases = [case for case in listed if case.case_number >= options.from_case]
    if not cases or options.num_samples < 1:
        raise ConfigError(
            f"nothing to generate: {options.prompts_path} has no case from {options.from_case} on, or "
            "--num_samples is below 1"
        )
    rows = [
        ImageRow(
            f"{case.case_number}_{k}.png",
            case.prompt,
            sample_seed(cast("int", case.evaluation_seed), k),
            size=(None, None) if options.image_size else (case.height, case.width),
        )
        for case in cases
        for k in range(options.num_samples)
    ]
    if any(case.evaluation_guidance not in (None, options.guidance_scale) for case in cases):
        log.warning("the guidance in %s has no effect: --guidance_scale is for all rows", options.prompts_path)
    folder = options.save_path / options.model_name
    paint(*opened(options.model_name, options.base, options.device), rows, folder, options)
    print(folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
