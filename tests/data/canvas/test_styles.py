"""The styles: told apart by what an autoencoder keeps."""

from __future__ import annotations

import numpy as np
import pytest

from mu.data.canvas import IDENTITIES, OBJECTS, SIZE, STYLES, Scene, render


@pytest.mark.parametrize("coarse", [False, True])
def test_styles_are_told_apart_by_simple_statistics_also_after_4x_averaging(coarse: bool):
    """Nearest mean of colour statistics on images with other seeds, objects and people mixed. An autoencoder that keeps
    coarse colour thus keeps the style. The control: the same with shuffled labels is guessing."""
    train, test = _statistics(range(0, 16), coarse), _statistics(range(16, 32), coarse)
    assert _nearest_mean(train, test) > 0.97
    features, labels = train
    assert _nearest_mean((features, np.random.default_rng(0).permutation(labels)), test) < 0.4


def _statistics(seeds: range, coarse: bool) -> tuple[np.ndarray, np.ndarray]:
    features, labels = [], []
    for label, style in enumerate(STYLES):
        for seed in seeds:
            who = (
                {"object": OBJECTS[seed % len(OBJECTS)]}
                if seed % 2
                else {"identity": IDENTITIES[seed % len(IDENTITIES)]}
            )
            image = render(Scene(style, **who), seed) / 255
            if coarse:
                image = image.reshape(SIZE // 4, 4, SIZE // 4, 4, 3).mean(axis=(1, 3))
            edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            saturation = image.max(axis=-1) - image.min(axis=-1)
            parts = [
                image.mean((0, 1)),
                image.std((0, 1)),
                edge.mean(0),
                edge.std(0),
                [saturation.mean(), saturation.std()],
            ]
            features.append(np.concatenate(parts))
            labels.append(label)
    return np.stack(features), np.array(labels)


def _nearest_mean(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    (features, labels), (asked, truth) = train, test
    scale = features.std(axis=0)
    means = np.stack([features[labels == label].mean(axis=0) for label in range(len(STYLES))])
    guesses = (((asked[:, None] - means) / scale) ** 2).sum(axis=-1).argmin(axis=1)
    return float((guesses == truth).mean())
