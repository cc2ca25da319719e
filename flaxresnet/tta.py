"""Test-time augmentation (TTA): several views of an image, whose logits are averaged."""

import numpy as np

ZOOMS = (1.0, 0.9, 1.1)  # the image as it is, magnified and reduced


def view_matrices(hflip: bool) -> list[np.ndarray]:
    """Returns the maps of `sample_bilinear`, (2, 2) float32, for all views except the image itself.

    Args:
      hflip: whether to add the mirror image of each view.
    """
    matrices = []
    for zoom in ZOOMS:
        matrices.append(np.diag([zoom, zoom]).astype(np.float32))
        if hflip:
            matrices.append(np.diag([zoom, -zoom]).astype(np.float32))
    return matrices[1:]
