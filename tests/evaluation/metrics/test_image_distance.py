"""Distances of images: known values, and that bytes do not wrap around."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mu.core.errors import DataError
from mu.evaluation.metrics.image_distance import max_difference, mean_difference

A = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)


def test_equal_images():
    assert (max_difference(A, A.copy()), mean_difference(A, A.copy())) == (0, 0.0)


def test_one_step_everywhere():
    assert (max_difference(A, A + 1), mean_difference(A, A + 1)) == (1, 1.0)


def test_bytes_do_not_wrap_around():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert int(np.abs(black - white).max()) == 1, "the control: numpy's own bytes do"
    assert (max_difference(black, white), mean_difference(black, white)) == (255, 255.0)


def test_one_changed_value_is_seen():
    b = A.copy()
    b[1, 3, 2, 0] ^= 0xFF
    step = abs(int(A[1, 3, 2, 0]) - int(b[1, 3, 2, 0]))
    assert max_difference(A, b) == max_difference(b, A) == step
    assert mean_difference(A, b) == pytest.approx(step / A.size)


def test_tensors_and_images_are_taken_too():
    assert max_difference(torch.from_numpy(A), A) == 0
    assert max_difference(Image.fromarray(A[0]), A[1]) == max_difference(A[0], A[1]) > 0


@pytest.mark.parametrize(("a", "b"), [(A / 255, A / 255), (A, A[0]), (A[:0], A[:0]), (A.astype(int), A)])
@pytest.mark.parametrize("distance", [max_difference, mean_difference])
def test_input_that_makes_no_sense_is_refused(distance, a: np.ndarray, b: np.ndarray):
    with pytest.raises(DataError):
        distance(a, b)
