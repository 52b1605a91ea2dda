"""FID between images of the base and of the edited model, with the released program's flags."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from _measuring import check_table, flags, folder_pairs, images, judge, write_table

from mu.core.errors import DataError
from mu.core.program import WithoutEffect, guarded, show_log, tell

log = logging.getLogger("mu")

HELP = "Measure the Fréchet distance of two image folders, or of each pair of equally named subfolders."
EXAMPLE = "python eval-scripts/FID_eval.py --path1 evaluation_folder/SD-v1-4 --path2 evaluation_folder/compvis-word_VanGogh-..."


def main() -> None:
    parser = flags(HELP, EXAMPLE, network="inception")
    parser.add_argument("--path1", "--original_path", type=Path, default=Path("clean_patch/"))
    parser.add_argument("--path2", "--edited_path", type=Path, default=Path("noisy_patch/"))
    parser.add_argument("--save_path", type=Path, help="also write the distances to this CSV")
    parser.add_argument(
        "--batch-size", "--batch_size", action=WithoutEffect, help="has no effect: the distance does not depend on it"
    )
    parser.add_argument("--dims", type=int, choices=(2048,), help="width of Inception's features")
    parser.add_argument("-c", "--gpu", dest="device", help="a GPU number, instead of --device")
    options = parser.parse_args()
    show_log()
    tell(options)
    if options.dims and options.network != "inception":
        log.warning("--dims has no effect: it is of Inception's features, and --network is %s", options.network)
    import torch

    from mu.core.compute import pick_device, there
    from mu.diffusion.image_files import read_images
    from mu.evaluation.backbones import inception_features
    from mu.evaluation.metrics.frechet import frechet_distance

    pairs = folder_pairs(options.path1, options.path2)
    sets = {name: [images(folder) for folder in pair] for name, pair in pairs.items()}
    if few := [name for name, both in sets.items() if min(map(len, both)) < 2]:
        raise DataError(f"{few[0]!r} has a single image in one of the folders: put two or more in each")
    if options.save_path:
        check_table(options.save_path, options.overwrite)
    device = pick_device(there(options.device))
    if options.network == "inception":
        features = inception_features(device)
    else:
        look = judge(device).look
        features = lambda image: look(image)[1]  # noqa: E731
    rows = []
    for name, both in sets.items():
        with torch.no_grad():
            seen = [torch.cat([features(read_images([path])).cpu() for path in paths]) for paths in both]
        rows.append(
            {
                "name": name,
                "FID": frechet_distance(*seen),
                "network": options.network,
                "n1": len(seen[0]),
                "n2": len(seen[1]),
            }
        )
        print(f"FID ({options.network})  {rows[-1]['FID']:.4f}  {name}, {len(seen[0])} and {len(seen[1])} images")
    if options.save_path:
        write_table(options.save_path, rows)


if __name__ == "__main__":
    sys.exit(guarded(main))
