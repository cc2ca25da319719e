"""Tests background replacement: the object stays, the background changes."""

import numpy as np

from flaxresnet.reliability.background_swap import foreground
from flaxresnet.reliability.corruptions import STRENGTHS, corrupt


def test_background_changes_and_object_stays():
    y, x = np.mgrid[:48, :48]
    squared_distance = (y - 26) ** 2 + (x - 24) ** 2
    disc = squared_distance < 14**2
    photo = np.where(disc[..., None], (170, 110, 80), (200, 200, 200)).astype(np.uint8)
    mask = foreground(photo)[..., 0] > 0.5
    assert (mask & disc).sum() / (mask | disc).sum() > 0.93
    edges = []
    inner = squared_distance < 11**2
    for strength in STRENGTHS:
        corrupted = corrupt(photo[None], "background", strength)[0].astype(int)
        assert np.abs(corrupted[inner] - photo[inner]).max() <= 2
        assert np.abs(corrupted[~disc] - 200).mean() > 10
        edges.append(np.abs(np.diff(corrupted[:10], axis=1)).mean())  # of the background above the object
    assert edges[0] < edges[1] < edges[2]


def test_photo_without_plain_background_stays():
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert foreground(noise[0]) is None
    np.testing.assert_array_equal(corrupt(noise, "background", "strong"), noise)
