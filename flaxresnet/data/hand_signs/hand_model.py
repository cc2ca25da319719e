"""A human hand posed to show a number: a skeleton in three dimensions whose bones are rounded cones.

Frame of the hand: the wrist is the origin, x points to the thumb's side, y along the fingers, z out of the
palm. The unit of length is the hand, from the wrist to the tip of the middle finger. Angles are in degrees.
Colours are sRGB in [0, 1].
"""

from typing import NamedTuple

import numpy as np

# One row per finger, from index to little: knuckle position x, y; the spread angle away from the y axis;
# lengths of the three phalanges; radius at the knuckle and at the tip. Proportions follow anatomical tables.
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

# Bend of the knuckle and of the two finger joints, and how much each of them varies.
FINGER_BENDS = {
    "up": ((8, 8, 5), (7, 6, 4)),
    "folded": ((78, 98, 48), (7, 7, 8)),
    "round": ((48, 52, 34), (5, 6, 6)),
}
# Direction of the thumb's three bones: angle from the y axis towards the thumb's side, rise out of the palm.
THUMB_TURNS = {
    "out": ((50, 40, 47), (22, 8, 4)),
    "across": ((28, -55, -72), (26, -2, -10)),
    "over": ((24, -38, -66), (42, 12, -2)),
    "round": ((22, 8, 0), (60, 42, 8)),
}


class Gesture(NamedTuple):
    """One way to show a sign: the state of the index to little finger and of the thumb, and its view."""

    share: float  # how often this way is taken among the ways to show the same sign
    fingers: tuple[str, str, str, str]
    thumb: str
    spread: tuple[float, float] = (0.45, 1.5)  # range of the factor on the spread angles of FINGERS
    yaw: tuple[float, float] = (-28.0, 28.0)  # turn about the y axis: 0 shows the palm, 90 the thumb's side


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

# Skin from fair to dark; people in between are interpolated.
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
BONE_TINTS = np.array([[1.0, 1.0, 1.0], [1.0, 0.975, 0.97], [1.0, 0.94, 0.93]])  # tips are a little redder


class Bone(NamedTuple):
    """A rounded cone between two points, the one solid that everything is built from."""

    start: np.ndarray  # float (3,)
    end: np.ndarray  # float (3,)
    radii: tuple[float, float]
    colour: np.ndarray  # float (3,)
    crease: float = 0.0  # darkness of the skin crease at its start, in [0, 1]
    tube: bool = False  # cut flat at both ends, as a sleeve is, instead of rounded
    limb: bool = False  # part of the arm, which may leave the picture


def chains(
    bases: np.ndarray, turns: np.ndarray, rises: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Joints (k, 4, 3) of k chains of three bones, and the unit vectors (k, 3) out of the last bones' backs.

    The chains start at bases (k, 3); turns and rises (k, 3) give the bones' directions in degrees, as
    THUMB_TURNS does; lengths (k, 3) are in hands.
    """
    sin_turn, cos_turn = np.sin(np.radians(turns)), np.cos(np.radians(turns))
    sin_rise, cos_rise = np.sin(np.radians(rises)), np.cos(np.radians(rises))
    steps = np.stack([sin_turn * cos_rise, cos_turn * cos_rise, sin_rise], axis=2) * lengths[..., None]
    backs = np.stack([sin_turn * sin_rise, cos_turn * sin_rise, -cos_rise], axis=2)[:, 2]
    return np.cumsum(np.concatenate([bases[:, None], steps], axis=1), axis=1), backs


def pose_hand(gesture: Gesture, skin: np.ndarray, nails: np.ndarray, rng: np.random.Generator) -> list[Bone]:
    """Bones of one person's hand showing the gesture, in the frame of the hand; colours are (3,)."""
    spread, width, crease = rng.uniform(*gesture.spread), rng.uniform(0.88, 1.15), rng.uniform(0.0, 0.3)
    sizes = FINGERS * rng.normal(1, 0.03, FINGERS.shape)
    mean, deviation = np.array([FINGER_BENDS[state] for state in gesture.fingers]).swapaxes(0, 1)
    # The fingers of a hand bend together, more than each for itself.
    bends = mean + deviation * (0.85 * rng.normal(size=3) + 0.5 * rng.normal(size=(4, 3)))
    thumb_turn, thumb_rise = np.array(THUMB_TURNS[gesture.thumb]) + rng.normal(0, 5, (2, 3))
    finger_turns = sizes[:, 2:3].repeat(3, axis=1) * spread + rng.normal(0, 3, (4, 1))
    joints, backs = chains(
        bases=np.vstack([np.pad(sizes[:, :2], ((0, 0), (0, 1))), THUMB_BASE]),
        turns=np.vstack([finger_turns, thumb_turn]),
        rises=np.vstack([np.cumsum(bends, axis=1), thumb_rise]),
        lengths=np.vstack([sizes[:, 3:6], THUMB_LENGTHS * rng.normal(1, 0.04, 3)]),
    )
    if gesture.thumb == "round":  # the tips of thumb and index finger close the O, now and then not quite
        gap = joints[0, 3] + (-0.02, -0.07, 0.02) - joints[4, 3]
        joints[4] += rng.uniform(0.5, 1.0) * np.outer((0, 0.35, 0.75, 1), gap)

    bones = palm(joints, skin, width)
    radii = np.vstack([np.linspace(sizes[:, 6], sizes[:, 7], 4, axis=1), THUMB_RADII]) * width
    tints = skin * BONE_TINTS
    for at, back, thick in zip(joints, backs, radii.tolist(), strict=True):
        bones += [Bone(at[i], at[i + 1], (thick[i], thick[i + 1]), tints[i], crease) for i in range(3)]
        tip, along = thick[3], (at[3] - at[2]) / np.linalg.norm(at[3] - at[2])
        nail = at[3] + 0.42 * tip * back
        ends = nail - 0.55 * tip * along, nail + 0.15 * tip * along
        bones.append(Bone(*ends, (0.66 * tip, 0.66 * tip), nails))
    return bones


def palm(joints: np.ndarray, skin: np.ndarray, width: float) -> list[Bone]:
    """The palm from the wrist to the joints (5, 4, 3) of fingers and thumb, with pads and web."""
    knuckles, thumb = joints[:4, 0], joints[4]
    wrist = knuckles * (0.45, 0.0, 0.0) + (0.0, 0.05, 0.0)
    # A raised finger draws the skin up between the fingers; a folded one has its root at the knuckle.
    first = joints[:4, 1] - knuckles
    roots = knuckles + first * np.clip(first[:, 1:2], 0, 0.2)
    solids = [(wrist[i], roots[i], 0.085, 0.070) for i in range(4)]
    solids += [(knuckles[i], knuckles[i + 1], 0.068, 0.068 - 0.002 * i) for i in range(3)]
    solids += [
        (wrist[3] + (0, 0.06, 0.01), knuckles[3] - (0, 0.12, -0.02), 0.085, 0.080),
        (0.5 * (thumb[0] + thumb[1]), 0.5 * (wrist[0] + knuckles[0]), 0.065, 0.060),
        (0.25 * thumb[0] + 0.75 * thumb[1], 0.3 * wrist[0] + 0.7 * knuckles[0], 0.045, 0.050),
    ]
    return [Bone(start, end, (r * width, s * width), skin) for start, end, r, s in solids]


def pose_arm(skin: np.ndarray, rng: np.random.Generator) -> list[Bone]:
    """Forearm down to beyond the picture's edge, sometimes in a sleeve or with a bracelet."""
    lean, tilt = np.radians(rng.normal(0, (12, 10)))
    direction = np.array([np.sin(lean), -np.cos(lean), np.sin(tilt)])
    thickness = rng.uniform(0.9, 1.1)

    def piece(near: float, far: float, extra: float, colour: np.ndarray, tube: bool = True) -> Bone:
        """The arm from near to far below the wrist, thicker than the skin by extra."""
        first, last = (thickness * (0.125 + 0.05 * min(at, 1.0)) + extra for at in (near, far))
        start, end = (direction * at + (0, 0.01, -0.03) for at in (near, far))
        return Bone(start, end, (first, last), colour, tube=tube, limb=True)

    bones = [piece(0.0, 2.0, 0.0, skin, tube=False)]
    if rng.random() < 0.3:  # a sleeve
        bones.append(piece(rng.uniform(0.1, 0.45), 2.0, rng.uniform(0.02, 0.05), rng.uniform(0.03, 0.9, 3)))
    if rng.random() < 0.15:  # a bracelet
        at = rng.uniform(0.08, 0.2)
        bones.append(piece(at, at + rng.uniform(0.02, 0.06), 0.012, rng.uniform(0, 0.7, 3)))
    return bones
