"""Model of a human hand that shows a number: a 3-D skeleton whose bones are rounded cones.

In the hand's frame, the wrist is the origin, x points to the thumb, y along the fingers, and z out of the palm. The
unit of length is the distance from the wrist to the tip of the middle finger. Angles are in degrees, and colors are
sRGB in [0, 1].
"""

from typing import NamedTuple

import numpy as np

# A row for each finger, from index to little: x and y of the knuckle, the spread angle from the y axis, the lengths of
# the three phalanges, and the radius at the knuckle and at the tip. Proportions follow anatomical tables.
FINGERS = np.array(
    [
        [0.145, 0.490, 10.0, 0.215, 0.122, 0.090, 0.056, 0.041],
        [0.048, 0.510, 0.0, 0.236, 0.140, 0.094, 0.058, 0.042],
        [-0.050, 0.490, -9.0, 0.219, 0.136, 0.094, 0.054, 0.040],
        [-0.140, 0.440, -20.0, 0.173, 0.097, 0.086, 0.048, 0.035],
    ]
)
THUMB_BASE = np.array([0.075, 0.080, 0.015])
THUMB_LENGTHS = np.array([0.245, 0.170, 0.120])
THUMB_RADII = np.array([0.092, 0.070, 0.061, 0.045])

# Bend of the knuckle and of the two finger joints: mean and standard deviation.
FINGER_BENDS = {
    "up": ((8, 8, 5), (7, 6, 4)),
    "folded": ((78, 98, 48), (7, 7, 8)),
    "round": ((48, 52, 34), (5, 6, 6)),
}
# Directions of the thumb's three bones: angles from the y axis toward x, and elevations out of the palm.
THUMB_TURNS = {
    "out": ((50, 40, 47), (22, 8, 4)),
    "across": ((28, -55, -72), (26, -2, -10)),
    "over": ((24, -38, -66), (42, 12, -2)),
    "round": ((22, 8, 0), (60, 42, 8)),
}


class Gesture(NamedTuple):
    """A way to show a sign: the pose of the fingers and the thumb, and the range of views.

    Attributes:
      probability: probability of this gesture among those of the same sign.
      fingers: keys of `FINGER_BENDS`, from index to little finger.
      thumb: key of `THUMB_TURNS`.
      spread: range of the factor of the spread angles in `FINGERS`.
      yaw: range of the rotation about the y axis; 0 shows the palm, and 90 the side of the thumb.
    """

    probability: float
    fingers: tuple[str, str, str, str]
    thumb: str
    spread: tuple[float, float] = (0.45, 1.5)
    yaw: tuple[float, float] = (-28.0, 28.0)


GESTURES = (
    (Gesture(0.7, ("round",) * 4, "round", (0.3, 0.9), (55.0, 100.0)), Gesture(0.3, ("folded",) * 4, "over")),
    (Gesture(1.0, ("up", "folded", "folded", "folded"), "over"),),
    (Gesture(1.0, ("up", "up", "folded", "folded"), "over", (0.4, 2.2)),),
    (
        Gesture(0.75, ("up", "up", "folded", "folded"), "out", (0.4, 2.2)),
        Gesture(0.25, ("up", "up", "up", "folded"), "over"),
    ),
    (Gesture(1.0, ("up",) * 4, "across"),),
    (Gesture(1.0, ("up",) * 4, "out"),),
)

# Skin from light to dark; tones in between are interpolated.
SKIN_TONES = np.array(
    [
        [0.96, 0.83, 0.75],
        [0.92, 0.75, 0.64],
        [0.84, 0.65, 0.51],
        [0.73, 0.53, 0.39],
        [0.58, 0.39, 0.28],
        [0.43, 0.28, 0.20],
        [0.31, 0.20, 0.15],
    ]
)
BONE_TINTS = np.array([[1.0, 1.0, 1.0], [1.0, 0.975, 0.97], [1.0, 0.94, 0.93]])  # fingertips are redder


class Bone(NamedTuple):
    """A rounded cone between two points; all parts of the hand and the arm are such cones.

    Attributes:
      start: (3,) float, one end of the axis.
      end: (3,) float, the other end of the axis.
      radii: radius at the start and at the end.
      color: (3,) float, sRGB in [0, 1].
      crease: darkness of the skin crease at the start, in [0, 1].
      is_tube: whether the ends are flat, like a sleeve's, and not rounded.
      is_arm: whether the bone is part of the arm, which may extend beyond the image.
    """

    start: np.ndarray
    end: np.ndarray
    radii: tuple[float, float]
    color: np.ndarray
    crease: float = 0.0
    is_tube: bool = False
    is_arm: bool = False


def chains(
    bases: np.ndarray, turns: np.ndarray, rises: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the joints of k chains of three bones each, such as fingers.

    Args:
      bases: (k, 3), the start of each chain.
      turns: (k, 3), each bone's angle from the y axis toward x, in degrees.
      rises: (k, 3), each bone's elevation out of the palm, in degrees.
      lengths: (k, 3).

    Returns:
      Joints (k, 4, 3), and the unit vectors (k, 3) that point out of the backs of the last bones.
    """
    sin_turn, cos_turn = np.sin(np.radians(turns)), np.cos(np.radians(turns))
    sin_rise, cos_rise = np.sin(np.radians(rises)), np.cos(np.radians(rises))
    steps = np.stack([sin_turn * cos_rise, cos_turn * cos_rise, sin_rise], axis=2) * lengths[..., None]
    backs = np.stack([sin_turn * sin_rise, cos_turn * sin_rise, -cos_rise], axis=2)[:, 2]
    return np.cumsum(np.concatenate([bases[:, None], steps], axis=1), axis=1), backs


def pose_hand(gesture: Gesture, skin: np.ndarray, nails: np.ndarray, rng: np.random.Generator) -> list[Bone]:
    """Returns the bones of a random person's hand with a gesture, in the hand's frame.

    Args:
      gesture: the pose.
      skin: (3,) color.
      nails: (3,) color.
      rng: source of the person's proportions and of small deviations from the pose.
    """
    spread = rng.uniform(*gesture.spread)
    width = rng.uniform(0.88, 1.15)
    crease = rng.uniform(0.0, 0.3)
    sizes = FINGERS * rng.normal(1, 0.03, FINGERS.shape)
    mean, deviation = np.array([FINGER_BENDS[state] for state in gesture.fingers]).swapaxes(0, 1)
    # Most of the variation in bending is common to all fingers of a hand.
    bends = mean + deviation * (0.85 * rng.normal(size=3) + 0.5 * rng.normal(size=(4, 3)))
    thumb_turn, thumb_rise = np.array(THUMB_TURNS[gesture.thumb]) + rng.normal(0, 5, (2, 3))
    finger_turns = sizes[:, 2:3].repeat(3, axis=1) * spread + rng.normal(0, 3, (4, 1))
    joints, backs = chains(
        bases=np.vstack([np.pad(sizes[:, :2], ((0, 0), (0, 1))), THUMB_BASE]),
        turns=np.vstack([finger_turns, thumb_turn]),
        rises=np.vstack([np.cumsum(bends, axis=1), thumb_rise]),
        lengths=np.vstack([sizes[:, 3:6], THUMB_LENGTHS * rng.normal(1, 0.04, 3)]),
    )
    if gesture.thumb == "round":  # the tips of thumb and index finger meet, or nearly
        gap = joints[0, 3] + (-0.02, -0.07, 0.02) - joints[4, 3]
        joints[4] += rng.uniform(0.5, 1.0) * np.outer((0, 0.35, 0.75, 1), gap)

    bones = palm(joints, skin, width)
    radii = np.vstack([np.linspace(sizes[:, 6], sizes[:, 7], 4, axis=1), THUMB_RADII]) * width
    tints = skin * BONE_TINTS
    for chain, back, radius in zip(joints, backs, radii.tolist(), strict=True):
        for i in range(3):
            bones.append(Bone(chain[i], chain[i + 1], (radius[i], radius[i + 1]), tints[i], crease))
        tip = radius[3]
        along = (chain[3] - chain[2]) / np.linalg.norm(chain[3] - chain[2])
        nail = chain[3] + 0.42 * tip * back
        bones.append(Bone(nail - 0.55 * tip * along, nail + 0.15 * tip * along, (0.66 * tip, 0.66 * tip), nails))
    return bones


def palm(joints: np.ndarray, skin: np.ndarray, width: float) -> list[Bone]:
    """Returns the palm between the wrist and the joints, (5, 4, 3), of fingers and thumb, with pads and webs."""
    knuckles = joints[:4, 0]
    thumb = joints[4]
    wrist = knuckles * (0.45, 0.0, 0.0) + (0.0, 0.05, 0.0)
    # A raised finger pulls the skin between the fingers up; a folded finger starts at the knuckle.
    first = joints[:4, 1] - knuckles
    roots = knuckles + first * np.clip(first[:, 1:2], 0, 0.2)
    solids = [(wrist[i], roots[i], 0.085, 0.070) for i in range(4)]
    solids += [(knuckles[i], knuckles[i + 1], 0.068, 0.068 - 0.002 * i) for i in range(3)]
    solids += [
        (wrist[3] + (0, 0.06, 0.01), knuckles[3] - (0, 0.12, -0.02), 0.085, 0.080),
        (0.5 * (thumb[0] + thumb[1]), 0.5 * (wrist[0] + knuckles[0]), 0.065, 0.060),
        (0.25 * thumb[0] + 0.75 * thumb[1], 0.3 * wrist[0] + 0.7 * knuckles[0], 0.045, 0.050),
    ]
    return [Bone(start, end, (first * width, last * width), skin) for start, end, first, last in solids]


def pose_arm(skin: np.ndarray, rng: np.random.Generator) -> list[Bone]:
    """Returns the forearm, which extends beyond the image's edge, at random with a sleeve or a bracelet."""
    lean, tilt = np.radians(rng.normal(0, (12, 10)))
    direction = np.array([np.sin(lean), -np.cos(lean), np.sin(tilt)])
    thickness = rng.uniform(0.9, 1.1)

    def segment(near: float, far: float, padding: float, color: np.ndarray, is_tube: bool = True) -> Bone:
        """Returns the arm from `near` to `far` below the wrist, with a radius `padding` larger than the skin's."""
        radii = [thickness * (0.125 + 0.05 * min(distance, 1.0)) + padding for distance in (near, far)]
        start, end = (direction * distance + (0, 0.01, -0.03) for distance in (near, far))
        return Bone(start, end, (radii[0], radii[1]), color, is_tube=is_tube, is_arm=True)

    bones = [segment(0.0, 2.0, 0.0, skin, is_tube=False)]
    if rng.random() < 0.3:  # a sleeve
        bones.append(segment(rng.uniform(0.1, 0.45), 2.0, rng.uniform(0.02, 0.05), rng.uniform(0.03, 0.9, 3)))
    if rng.random() < 0.15:  # a bracelet
        near = rng.uniform(0.08, 0.2)
        bones.append(segment(near, near + rng.uniform(0.02, 0.06), 0.012, rng.uniform(0, 0.7, 3)))
    return bones
