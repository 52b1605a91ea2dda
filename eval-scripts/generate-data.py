"""Generate training images of a concept with the base model and the released program's flags: ``mu generate``."""

from __future__ import annotations

import sys

from _sampling import BASES, flags, paint

from mu.core.errors import ConfigError
from mu.core.program import guarded, show_log

HELP = "Generate images of a concept with Stable Diffusion 1.4 (or --base) in <save_path>/<model_name>/<case>_<k>.png."
EXAMPLE = (
    "python eval-scripts/generate-data.py --model_name='Van Gogh' --save_path './data/' --num_samples 1 --device cuda:0"
)


def main() -> None:
    parser = flags(HELP, EXAMPLE, samples=1)
    parser.add_argument(
        "--model_name", required=True, help="the concept and the folder's name; with --prompt, a model's name"
    )
    parser.add_argument("--prompt", help="the prompt (default: the model's name)")
    parser.add_argument(
        "--cases", type=int, default=1000, help="number of cases; a case's number is its seed (default: 1000)"
    )
    options = parser.parse_args()
    show_log()
    if options.cases < 1 or options.num_samples < 1 or options.from_case >= options.cases:
        raise ConfigError(
            "nothing to generate: --cases and --num_samples must be 1 or more, and --from_case below --cases"
        )
    from mu.core.concept import Concept
    from mu.diffusion.image_folder import ImageRow
    from mu.models import load_diffusion

    prompt = options.prompt if options.prompt is not None else str(Concept(options.model_name))
    folder = options.save_path / options.model_name
    if folder.resolve().parent != options.save_path.resolve():
        raise ConfigError(f"--model_name {options.model_name!r} leads out of --save_path: use a name without slashes")
    rows = [
        ImageRow(f"{case}_{k}.png", prompt, case * options.num_samples + k)
        for case in range(options.from_case, options.cases)
        for k in range(options.num_samples)
    ]
    place = BASES.get(options.model_name, BASES["SD-v1-4"]) if options.prompt is not None else BASES["SD-v1-4"]
    paint(load_diffusion(options.base or place, device=options.device), [], rows, folder, options)
    print(folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
