"""Other walls behind the thing: it stays, they change; and photos where it cannot be told."""

import numpy as np

from flaxresnet.reliability.background_swap import foreground
from flaxresnet.reliability.corruptions import STRENGTHS, shifted


def test_the_wall_changes_and_the_thing_stays():
    y, x = np.mgrid[:48, :48]
    inside = (y - 26) ** 2 + (x - 24) ** 2 < 14**2
    photo = np.where(inside[..., None], (170, 110, 80), (200, 200, 200)).astype(np.uint8)
    cover = foreground(photo)[..., 0] > 0.5
    assert (cover & inside).sum() / (cover | inside).sum() > 0.93
    clutter = []
    inner = (y - 26) ** 2 + (x - 24) ** 2 < 11**2
    for strength in STRENGTHS:
        new = shifted(photo[None], "background", strength)[0]
        assert np.abs(new[inner].astype(int) - photo[inner]).max() <= 2
        assert np.abs(new[~inside].astype(int) - 200).mean() > 10
        clutter.append(np.abs(np.diff(new[:10].astype(int), axis=1)).mean())  # above the thing: edges of the wall
    assert clutter[0] < clutter[1] < clutter[2]


def test_a_photo_without_a_plain_background_stays_as_it_is():
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert foreground(noise[0]) is None
    np.testing.assert_array_equal(shifted(noise, "background", "strong"), noise)
