"""Joint orders by name: which joints, which is whose mirror image, which pairs make a limb."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from jaxact.config import UserError


@dataclass(frozen=True)
class Skeleton:
    """A joint order. Names of sided joints start with `l_` or `r_`.

    `limbs` holds pairs of indices into `joints`, drawn as segments by limb heatmaps.
    """

    name: str
    joints: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...] = ()

    @property
    def left(self) -> tuple[int, ...]:
        """Indices of the left joints, ascending."""
        return tuple(i for i, joint in enumerate(self.joints) if joint.startswith("l_"))

    @property
    def right(self) -> tuple[int, ...]:
        """Indices of the right joints, each the partner of the same entry of `left`."""
        return tuple(self.joints.index("r_" + self.joints[i][2:]) for i in self.left)

    @property
    def swap(self) -> tuple[int, ...]:
        """For each joint, the joint whose place it takes in a mirror."""
        order = list(range(len(self.joints)))
        for l, r in zip(self.left, self.right, strict=True):
            order[l], order[r] = r, l
        return tuple(order)

    @property
    def limb_swap(self) -> tuple[int, ...]:
        """For each limb, the limb whose place it takes in a mirror."""
        index = {frozenset(limb): i for i, limb in enumerate(self.limbs)}
        swap = self.swap
        return tuple(index[frozenset((swap[a], swap[b]))] for a, b in self.limbs)


def _canonical(joint: str) -> str:
    """`left_wrist`, `LeftWrist`, `L_wrist` -> `l_wrist`."""
    text = "".join("_" + c if c.isupper() and i else c for i, c in enumerate(joint.strip()))
    text = text.lower().replace(" ", "_").replace("-", "_").replace("__", "_")
    for side, short in (("left_", "l_"), ("right_", "r_")):
        if text.startswith(side):
            text = short + text[len(side) :]
    return text


# fmt: off
_COCO = (
    "nose", "l_eye", "r_eye", "l_ear", "r_ear", "l_shoulder", "r_shoulder", "l_elbow", "r_elbow",
    "l_wrist", "r_wrist", "l_hip", "r_hip", "l_knee", "r_knee", "l_ankle", "r_ankle",
)
# MMAction2's default limb order, and the one its NTU limb configurations give instead.
COCO17 = Skeleton("coco17", _COCO, (
    (0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (5, 7), (7, 9), (0, 6), (6, 8), (8, 10), (5, 11),
    (11, 13), (13, 15), (6, 12), (12, 14), (14, 16), (11, 12),
))
COCO17_NTU = Skeleton("coco17_ntu", _COCO, (
    (0, 5), (0, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (11, 13), (13, 15), (6, 12),
    (12, 14), (14, 16), (0, 1), (0, 2), (1, 3), (2, 4), (11, 12),
))
JHMDB15 = Skeleton("jhmdb15", (
    "neck", "belly", "face", "r_shoulder", "l_shoulder", "r_hip", "l_hip", "r_elbow", "l_elbow",
    "r_knee", "l_knee", "r_wrist", "l_wrist", "r_ankle", "l_ankle",
), (
    (0, 2), (0, 1), (0, 3), (0, 4), (3, 7), (4, 8), (7, 11), (8, 12), (1, 5), (1, 6), (5, 9),
    (6, 10), (9, 13), (10, 14),
))
_OPENPOSE = (
    "nose", "neck", "r_shoulder", "r_elbow", "r_wrist", "l_shoulder", "l_elbow", "l_wrist",
)
OPENPOSE18 = Skeleton("openpose18", (
    *_OPENPOSE, "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle",
    "r_eye", "l_eye", "r_ear", "l_ear",
), (
    (0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11),
    (11, 12), (12, 13), (0, 14), (14, 16), (0, 15), (15, 17),
))
BODY25 = Skeleton("body25", (
    *_OPENPOSE, "hip", "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle",
    "r_eye", "l_eye", "r_ear", "l_ear", "l_big_toe", "l_small_toe", "l_heel",
    "r_big_toe", "r_small_toe", "r_heel",
), (
    (0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11),
    (8, 12), (12, 13), (13, 14), (0, 15), (15, 17), (0, 16), (16, 18), (14, 19), (19, 20),
    (14, 21), (11, 22), (22, 23), (11, 24),
))
# fmt: on

SKELETONS = {s.name: s for s in (COCO17, COCO17_NTU, JHMDB15, OPENPOSE18, BODY25)}


def find(name: str) -> Skeleton:
    """The skeleton of this name.

    Raises: UserError listing the known names.
    """
    if name not in SKELETONS:
        close = difflib.get_close_matches(name, SKELETONS, 1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(f"skeleton {name!r} is unknown{hint}; known: {', '.join(SKELETONS)}")
    return SKELETONS[name]


def order(source: Sequence[str], target: Skeleton) -> tuple[int, ...] | None:
    """Where each joint of `target` stands among the names `source`; None when nothing moves.

    Raises: UserError naming the joints that `source` lacks.
    """
    names = [_canonical(str(joint)) for joint in source]
    missing = [joint for joint in target.joints if joint not in names]
    if missing:
        raise UserError(f"lacks the joints {', '.join(missing)} of {target.name}")
    places = tuple(names.index(joint) for joint in target.joints)
    return None if places == tuple(range(len(names))) else places
