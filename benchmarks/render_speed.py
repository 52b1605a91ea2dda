"""How many images the canvas renderer makes in a second, by one process and by two; prints JSON.

    python benchmarks/render_speed.py [images]

The goal is over 300 a second on two cores: then 30,000 images to train on take under two minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import sys
import time

from mu.data.canvas import every_scene, render

SCENES = every_scene()
GOAL = 300


def rendered(rows: range) -> int:
    for row in rows:
        render(SCENES[row % len(SCENES)], row)
    return len(rows)


def speed(images: int, processes: int) -> float:
    """Images a second; starting the processes is not counted."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(rendered, [range(len(SCENES))] * processes, chunksize=1)
        began = time.perf_counter()
        pool.map(rendered, [range(first, min(first + 50, images)) for first in range(0, images, 50)], chunksize=1)
        return images / (time.perf_counter() - began)


if __name__ == "__main__":
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    found = {processes: round(speed(images, processes), 1) for processes in (1, 2)}
    print(json.dumps({
        "pictures": images, "per_second": found, "goal_on_two": GOAL, "met": found[2] > GOAL,
        "cpus": multiprocessing.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
    }, indent=2))  # fmt: skip
