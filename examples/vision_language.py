"""SLUG in the vision tower of a LLaVA: the names it gives to people in images, before and after.

python examples/vision_language.py    # canvas-vlm
python examples/vision_language.py --model llava-hf/llava-1.5-7b-hf    # needs data/, see docs/slug.md
"""

import argparse

from matplotlib.figure import Figure

import mu
from mu.algorithms import algorithm
from mu.models.zero_shot import open_tasks

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--model", default="canvas-vlm")
options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of slug")
args = options.parse_args()
concept = "Ada Stone" if args.model == "canvas-vlm" else "Elon Musk"
settings = dict(pair.split("=", 1) for pair in args.set)

model = mu.load(args.model)
data = algorithm("slug").for_concepts([concept], args.model).data
people = next(task for task in open_tasks(data.tasks, 4, 99, [concept]) if task.name == "identity")
names, photos = [people.classes[label] for label in people.labels], [p.image() for p in people.images]
edit = mu.erase(model, concept, method="slug", **settings)
answers = []
for strength, when in ((0, "before"), (1, "after")):
    with edit.applied(model, strength):
        answers.append(model.answer(photos, ["What is the name of the person in this image?"] * len(photos)))
    right = [(n == concept, n.casefold() in a.casefold()) for n, a in zip(names, answers[-1], strict=True)]
    gone, kept = ([hit for its, hit in right if its == wanted] for wanted in (True, False))
    print(f"{when:6}  {concept}: {sum(gone) / len(gone):.0%} named, the others: {sum(kept) / len(kept):.0%}")
rows = [names.index(name) for name in dict.fromkeys([concept, *names])][:5]
figure = Figure(figsize=(9, 2.6), layout="constrained")
for axis, row in zip(figure.subplots(1, len(rows)), rows, strict=True):
    axis.imshow(photos[row])
    axis.set_title(f"{names[row]}\n{answers[0][row]} \N{RIGHTWARDS ARROW} {answers[1][row]}", fontsize=8)
    axis.axis("off")
figure.savefig("vision_language.png")
