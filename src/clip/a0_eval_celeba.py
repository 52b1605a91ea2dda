"""A CLIP's zero-shot accuracies on CelebA's people and on ImageNet, before or after an edit."""

from __future__ import annotations

import sys
from pathlib import Path

from mu.core.compute import there
from mu.core.errors import DataError
from mu.core.program import Parser, guarded, show_log

data_root = Path("data")
"""The folder that holds celeba/ and ImageNet/: change it here, or pass --data_root."""

HELP = "Measure which people of <data_root>/celeba and which classes of <data_root>/ImageNet a CLIP recognises."
EXAMPLE = "example: python src/clip/a0_eval_celeba.py --data_root data --edit outputs/slug/Elon-Musk"


def main() -> None:
    flags = Parser(description=HELP, epilog=EXAMPLE)
    flags.add_argument("--data_root", type=Path, default=data_root, help="holds celeba/ and ImageNet/ (default: data)")
    flags.add_argument("--model", help="the CLIP (default: the edit's base, else open_clip:ViT-B-32/laion400m_e32)")
    flags.add_argument("--edit", type=Path, help="a run or an edit: measure the CLIP with it")
    flags.add_argument("--device", type=there, default="cuda:0", help="default: cuda:0, or the CPU without a GPU")
    options = flags.parse_args()
    show_log()
    places = {"celeba": options.data_root / "celeba", "imagenet": options.data_root / "ImageNet"}
    names = [f"{kind}:{place}" for kind, place in places.items() if place.is_dir()]
    if not names:
        raise DataError(f"{options.data_root} holds neither celeba/ nor ImageNet/: pass the right --data_root")
    from contextlib import nullcontext

    import torch

    from mu.core.errors import ModelError
    from mu.edits.files import open_edit
    from mu.evaluation.suites.clip import accuracies, classified
    from mu.models import load
    from mu.models.clip import ClipModel
    from mu.models.zero_shot import report_tasks, target_of

    edit = open_edit(options.edit) if options.edit else None
    concepts = edit.info.concepts if edit else ()
    tasks = report_tasks(names, 1, (0,), concepts)
    targets = [target_of(concept, tasks) for concept in concepts]
    model = load(
        options.model or (edit.info.base if edit else "") or "open_clip:ViT-B-32/laion400m_e32", device=options.device
    )
    if not isinstance(model, ClipModel):
        raise ModelError(f"{model.name!r} is not a CLIP: name one with --model")
    with torch.no_grad(), edit.applied(model) if edit else nullcontext():
        seen = {task.name: classified(model, task, lambda done: None) for task in tasks}
    for score in accuracies(seen, tasks, targets, "clip/1"):
        print(f"{score.name}  {score.value:.4f} of {score.n} images")


if __name__ == "__main__":
    sys.exit(guarded(main))
