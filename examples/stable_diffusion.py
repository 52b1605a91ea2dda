"""SLUG in the text encoder of a Stable Diffusion: portraits before and after, and CLIP's probability of each name.

python examples/stable_diffusion.py
python examples/stable_diffusion.py --model stabilityai/stable-diffusion-2-1    # needs data/, see docs/slug.md
"""

import argparse

from matplotlib.figure import Figure

import mu
from mu.algorithms import algorithm

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--model", default="canvas")
options.add_argument("--out", default="stable_diffusion.png")
options.add_argument("--steps", type=int, default=30)
options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of slug")
args = options.parse_args()
canvas = args.model.startswith("canvas")
people = ["Ada Stone", "Boris Vale", "Clara Moss"] if canvas else ["Elon Musk", "Mark Zuckerberg", "Taylor Swift"]
settings = dict(pair.split("=", 1) for pair in args.set)

model = mu.load(args.model)
clip = mu.load(settings.get("clip") or algorithm("slug").for_concepts(people[:1], args.model).clip)
prompts = [f"a portrait of {name}" for name in people]
edit = mu.erase(model, people[0], method="slug", **settings)
figure = Figure(figsize=(6, 4.5), layout="constrained")
for axes, strength, when in zip(figure.subplots(2, len(people)), (0, 1), ("before", "after"), strict=True):
    with edit.applied(model, strength):
        images = mu.generate(model, prompts, seeds=range(len(prompts)), steps=args.steps)
    sure = clip.zero_shot(images, prompts).softmax(dim=1).diagonal()
    print(f"{when:6}  " + ", ".join(f"{name}: {float(p):.0%}" for name, p in zip(people, sure, strict=True)))
    for axis, image, name in zip(axes, images, people, strict=True):
        axis.imshow(image.permute(1, 2, 0))
        axis.set_title(f"{name}, {when}", fontsize=9)
        axis.axis("off")
figure.savefig(args.out)
