"""NTU RGB+D 60 and 120: what a clip's name says, and the official splits.

Source: Shahroudy et al. 2016, Liu et al. 2019 (evaluation protocols).
"""

import re
from typing import NamedTuple

from jaxact.config import UserError

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")
# fmt: off
_SUBJECTS_60 = frozenset((
    1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38,
))
_SUBJECTS_120 = _SUBJECTS_60 | frozenset((
    45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86,
    89, 91, 92, 93, 94, 95, 97, 98, 100, 103,
))
# fmt: on


class Name(NamedTuple):
    """The fields of SsssCcccPpppRrrrAaaa; `label` is the action number minus one."""

    setup: int
    camera: int
    subject: int
    repeat: int
    label: int


_TRAINS = {
    "xsub": lambda name: name.subject in _SUBJECTS_60,
    "xview": lambda name: name.camera in (2, 3),
    "xsub120": lambda name: name.subject in _SUBJECTS_120,
    "xset120": lambda name: name.setup % 2 == 0,
}
PROTOCOLS = tuple(_TRAINS)


def parse(clip: str) -> Name:
    """The fields in a clip's name; folders and suffixes such as `_rgb.avi` are passed over.

    Raises: UserError for a text without such a name.
    """
    match = _NAME.search(clip)
    if not match:
        raise UserError(f"clip {clip!r} has no NTU name; the form is SsssCcccPpppRrrrAaaa")
    setup, camera, subject, repeat, action = map(int, match.groups())
    if not 1 <= action <= 120:
        raise UserError(f"clip {clip!r}: action {action}, allowed are 1 to 120")
    return Name(setup, camera, subject, repeat, action - 1)


def split(clip: str, protocol: str) -> str:
    """`train` or `val`: the side of the protocol on which the clip falls.

    `xsub` and `xview` belong to NTU-60 (actions 1-60), `xsub120` and `xset120` to NTU-120.

    Raises: UserError for an unknown protocol, or an action that the protocol does not have.
    """
    if protocol not in _TRAINS:
        raise UserError(f"NTU protocol {protocol!r} is unknown; known: {', '.join(PROTOCOLS)}")
    name = parse(clip)
    if name.label >= 60 and not protocol.endswith("120"):
        raise UserError(f"clip {clip!r}: action {name.label + 1} is not in NTU-60 ({protocol})")
    return "train" if _TRAINS[protocol](name) else "val"


def two_people(label: int) -> bool:
    """Whether two persons act: A50-A60 and A106-A120."""
    return 49 <= label <= 59 or 105 <= label <= 119
