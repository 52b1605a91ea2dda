"""SLUG erases a person from CLIP: accuracy before and after, on images that the search has not seen.

python examples/clip_identity.py
python examples/clip_identity.py --model open_clip:ViT-B-32/laion400m_e32    # needs data/, see docs/slug.md
"""

import argparse

import torch
from matplotlib.figure import Figure

import mu
from mu.algorithms import algorithm
from mu.evaluation.metrics.accuracy import hits
from mu.models.zero_shot import logits, open_tasks

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--model", default="canvas-clip")
options.add_argument("--out", default="clip_identity.png")
options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of slug")
args = options.parse_args()
concept = "Ada Stone" if args.model.startswith("canvas") else "Elon Musk"

clip = mu.load(args.model)
data = algorithm("slug").for_concepts([concept], args.model).data
people = next(task for task in open_tasks(data.tasks, 8, 99, [concept]) if task.name == "identity")
labels = torch.tensor(people.labels, device=clip.device)
shown = list(dict.fromkeys([people.label_of(concept), *people.labels]))[:5]
edit = mu.erase(clip, concept, method="slug", **dict(pair.split("=", 1) for pair in args.set))
figure = Figure(figsize=(9, 4.5), layout="constrained")
for axis, strength, when in zip(figure.subplots(1, 2, sharey=True), (0, 1), ("before", "after"), strict=True):
    with edit.applied(clip, strength):
        images, names = clip.encode_images([p.image() for p in people.images]), clip.encode_text(people.prompts)
    right, gone = hits(logits(images, people.weights(names)), labels, 1), labels == shown[0]
    print(f"{when:6}  {concept}: {right[gone].mean():.0%} recognised, the others: {right[~gone].mean():.0%}")
    means = torch.stack([images[labels == label].mean(dim=0) for label in shown])
    axis.imshow(logits(means, people.weights(names))[:, shown].T.cpu())
    axis.set(title=f"{when}: name (row), images of (column)", xticks=range(len(shown)), yticks=range(len(shown)))
    axis.set_yticklabels(people.classes[label] for label in shown)
figure.savefig(args.out)
