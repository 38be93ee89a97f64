"""Scenes of JRDB and their splits, and the label names of its pairs of people."""

import difflib
from collections.abc import Mapping, Sequence

from jaxact.config import UserError

IMAGES = "images/image_stitched"
LABELS = "labels/labels_2d_activity_social_stitched"

# The original's split with one scene, stlc-111-2019-04-19_0, taken out of the test part: it stands
# in the training part too.
_FIXED = {
    "train": (
        "bytes-cafe-2019-02-07_0",
        "clark-center-2019-02-28_0",
        "cubberly-auditorium-2019-04-22_0",
        "forbes-cafe-2019-01-22_0",
        "gates-159-group-meeting-2019-04-03_0",
        "gates-to-clark-2019-02-28_1",
        "gates-ai-lab-2019-02-08_0",
        "hewlett-packard-intersection-2019-01-24_0",
        "huang-2-2019-01-25_0",
        "huang-basement-2019-01-25_0",
        "huang-lane-2019-02-12_0",
        "memorial-court-2019-03-16_0",
        "meyer-green-2019-03-16_0",
        "nvidia-aud-2019-04-18_0",
        "packard-poster-session-2019-03-20_2",
        "stlc-111-2019-04-19_0",
        "svl-meeting-gates-2-2019-04-08_0",
        "tressider-2019-04-26_2",
        "jordan-hall-2019-04-22_0",
    ),
    "val": (
        "clark-center-2019-02-28_1",
        "gates-basement-elevators-2019-01-17_1",
        "packard-poster-session-2019-03-20_1",
        "svl-meeting-gates-2-2019-04-08_1",
        "tressider-2019-03-16_1",
    ),
    "test": (
        "packard-poster-session-2019-03-20_0",
        "clark-center-intersection-2019-02-28_0",
        "tressider-2019-03-16_0",
    ),
}
_SOCIAL_VAL = (
    "clark-center-2019-02-28_1",
    "gates-ai-lab-2019-02-08_0",
    "huang-2-2019-01-25_0",
    "meyer-green-2019-03-16_0",
    "nvidia-aud-2019-04-18_0",
    "tressider-2019-03-16_1",
    "tressider-2019-04-26_2",
)
PUBLIC = tuple(scene for scenes in _FIXED.values() for scene in scenes)
PRESETS: dict[str, dict[str, tuple[str, ...]]] = {
    "fixed": _FIXED,
    # That of the benchmarks; the labels of its 27 test scenes are not public.
    "jrdb_social": {
        "train": tuple(scene for scene in PUBLIC if scene not in _SOCIAL_VAL),
        "val": _SOCIAL_VAL,
        "test": (),
    },
}

# Names of pairs in the public label files that are no class here.
OTHERS = frozenset(
    (
        "bending",
        "conversation",
        "cycling",
        "eating",
        "going downstairs",
        "going upstairs",
        "holding sth",
        "looking at robot",
        "looking at sth",
        "moving",
        "walking toward each other",
    )
)


def disjoint(
    splits: Mapping[str, Sequence[str]], where: str, what: str = "scene"
) -> dict[str, tuple[str, ...]]:
    """The splits themselves. Raises: UserError naming what stands in two of them."""
    home: dict[str, str] = {}
    for name, members in splits.items():
        for member in members:
            if member in home:
                raise UserError(
                    f"{where}: {what} {member} is in {home[member]} and in {name}; allowed: each "
                    f"{what} once"
                )
            home[member] = name
    return {name: tuple(members) for name, members in splits.items()}


def nearest(name: str, classes: Sequence[str]) -> str:
    """The class that a name was probably meant to be, or ""."""
    plain = " ".join(name.replace("_", " ").casefold().split())
    close = difflib.get_close_matches(plain, classes, 1, cutoff=0.88)
    # "talking together" is another word, not a slip in "walking together".
    return close[0] if close and close[0][:2] == plain[:2] else ""
