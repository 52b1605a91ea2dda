"""Seconds of small models with different numbers of threads, side by side, on an idle or a busy machine.

    python benchmarks/threads.py                       # with 1 and 2 threads
    python benchmarks/threads.py --threads 1 4 16
    python benchmarks/threads.py --busy 1              # while one other process computes

The numbers of threads take turns, so that they share what else the machine does; each figure is the median over rounds.
`mu.core.threads` says what follows from it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from statistics import median

import torch

import mu
from mu.data.canvas import PROMPTS


def spin() -> None:
    while True:
        pass


def works() -> dict[str, Callable[[], object]]:
    painter, clip = mu.load("canvas", device="cpu"), mu.load("canvas-clip", device="cpu")
    prompts = list(PROMPTS[:8])

    def step() -> None:
        painter.unet.train()
        x = torch.randn(4, 4, 8, 8)
        cond = painter.encode(prompts[:4])
        weights = [p.requires_grad_() for p in painter.unet.parameters()]
        for _ in range(5):
            torch.autograd.grad(painter.predict_noise(x, torch.tensor(500), cond).square().mean(), weights)

    return {
        "canvas: 8 images, 10 steps": lambda: mu.generate(painter, prompts, seeds=[*range(8)], steps=10),
        "canvas: 1 image, 10 steps": lambda: mu.generate(painter, prompts[:1], seeds=[0], steps=10),
        "canvas: 5 training steps of batch 4": step,
        "canvas-clip: 64 prompts": lambda: clip.encode_text(list(PROMPTS)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute meanwhile")
    options = parser.parse_args()
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(options.busy)]
    for other in others:
        other.start()
    print(f"{'':38}" + "".join(f"{f'{n} threads: s (CPU s)':>24}" for n in options.threads))
    for name, work in works().items():
        work()
        took: dict[int, list[tuple[float, float]]] = {n: [] for n in options.threads}
        for _ in range(options.rounds):
            for n in options.threads:
                torch.set_num_threads(n)
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                took[n].append((time.perf_counter() - wall, time.process_time() - cpu))
        cells = [f"{median(w for w, _ in took[n]):.2f} ({median(c for _, c in took[n]):.2f})" for n in options.threads]
        print(f"{name:38}" + "".join(f"{cell:>24}" for cell in cells))
    for other in others:
        other.terminate()


if __name__ == "__main__":
    main()
