"""The parts of a photo that are looked at."""

import numpy as np
import pytest

from flaxresnet.data.parts import SIDES, parts


@pytest.mark.parametrize(
    ("height", "width", "aspect"), [(100, 100, 1), (300, 400, 1), (90, 30, 1), (64, 200, 2), (7, 5, 1)]
)
def test_parts_lie_within_the_photo_and_reach_every_place(height, width, aspect):
    boxes = np.array(list(parts(height, width, aspect)))
    left, upper, right, lower = boxes.T
    assert boxes.min() >= 0
    assert right.max() == pytest.approx(width)
    assert lower.max() == pytest.approx(height)
    np.testing.assert_allclose((right - left) / (lower - upper), aspect)
    largest = min(height, width / aspect)
    for side in SIDES[1:]:
        own = np.isclose(lower - upper, side * largest)
        # Whatever is half as large as a part lies whole in one of them, wherever it is.
        for starts, part, whole in ((upper[own], side * largest, height), (left[own], side * largest * aspect, width)):
            assert np.diff(np.unique(starts.round(6))).max() <= part / 2 + 1e-6
            assert (starts.min(), starts.max()) == (0, pytest.approx(whole - part))


def test_the_whole_photo_is_no_part():
    assert (0, 0, 100, 100) not in list(parts(100, 100))
    assert [box for box in parts(100, 150) if box[3] - box[1] == 100] == [(0, 0, 100, 100), (50, 0, 150, 100)]
