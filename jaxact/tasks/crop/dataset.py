"""Pictures of crop diseases: from annotations to the arrays of one example.

Arrays are those of the table in `task.py`, without b: in evaluation `image` has an axis of views in
front, none mirrored. Everything drawn at random comes from the generator given.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data import images, media
from jaxact.models.specs import PARTS
from jaxact.tasks.crop import annotation_files, annotations, augment, cache, classes, tfds
from jaxact.tasks.crop.annotation_files import Listing
from jaxact.tasks.crop.annotations import Picture, PictureSource
from jaxact.tasks.crop.audit import inspect
from jaxact.tasks.crop.classes import ClassTable, Meaning
from jaxact.tasks.crop.config import Data, Views

_NUMBERS = ("label", *PARTS)

# ----------------------------------------------------------------------------------------- sources


def table(data: Data) -> ClassTable:
    """The classes by their heads. Raises: as `meanings`."""
    return classes.build(meanings(data), data.diseases)


def meanings(data: Data) -> tuple[Meaning, ...]:
    """The classes: the table named, else what the annotations say, else plain numbers.

    Raises: UserError for a table or annotations that are missing, invalid, or of another count.
    """
    if data.class_table:
        known = data.class_table == "ai_challenger"
        listed = classes.ai_challenger() if known else classes.read(data.class_table)
        if data.classes and data.classes != len(listed):
            raise UserError(
                f"config.data.classes={data.classes}: {data.class_table} has {len(listed)} "
                "classes; allowed: 0 (as many as it has) or that number"
            )
        _same_classes(data, {meaning.name for meaning in listed})
        return listed
    if tfds.named(data.annotations):
        return tfds.meanings(data.annotations)
    if data.classes and not Path(data.annotations).is_file():
        return tuple(Meaning(str(k)) for k in range(data.classes))
    return annotations.meanings(_listings(data), data.classes)


def _same_classes(data: Data, known: set[str]) -> None:
    """Raises: UserError where the annotations name classes, none of which is in the table."""
    if not Path(data.annotations).is_file():  # none, tfds, or missing: its reader says so
        return
    named = {row.name for listing in _listings(data) for row in listing.rows if row.name}
    if named and not named & known:
        raise UserError(
            f"{data.annotations}: classes {', '.join(sorted(named)[:3])} ... are not those of "
            f"config.data.class_table={data.class_table!r}; allowed: their table, or '' for the "
            "annotations' own (with config.data.missing=error)"
        )


def _listings(data: Data) -> tuple[Listing, ...]:
    """Every annotation file of the config, once each."""
    if not data.annotations:
        raise UserError(
            "config.data.annotations is empty; allowed: a .csv, .json or .txt file, or tfds:NAME"
        )
    names = dict.fromkeys([data.annotations, data.val_annotations, data.test_annotations])
    return tuple(annotation_files.parse(name) for name in names if name)


def source(data: Data, split: str) -> PictureSource:
    """The pictures of one split.

    Raises: UserError for missing or invalid annotations, a class without a training picture, and a
    class of the split that training never sees (both unless data.missing is "allow").
    """
    pictures = _split(data, split)
    if split == "train" and data.shots:
        pictures = annotations.few_shots(pictures, data.shots, data.shots_seed)
    if data.missing == "error":
        _require_classes(data, pictures, split)
    return PictureSource(pictures)


def _split(data: Data, split: str) -> list[Picture]:
    path, field = data.annotations, "train_split"
    if split == "test" and (data.test_annotations or data.test_split):
        path, field = data.test_annotations or data.annotations, "test_split"
    elif split != "train":
        path, field = data.val_annotations or data.annotations, "val_split"
    named = getattr(data, field)
    known = table(data)
    if tfds.named(path):
        return [annotations.with_parts(p, known) for p in tfds.pictures(path, named)]
    _listings(data)  # names what is empty before what is missing
    listing = annotation_files.parse(path)
    if split != "train" and "split" not in listing.columns and path == data.annotations:
        raise UserError(
            f"{path}: has no column 'split' to tell {split} pictures from training ones; "
            "allowed: such a column, or config.data.val_annotations"
        )
    folder = annotations.folder_of(listing, data.images)
    return [annotations.picture(row, known, folder) for row in listing.chosen(named, field)]


def _require_classes(data: Data, pictures: Sequence[Picture], split: str) -> None:
    known = table(data)
    trained = pictures if split == "train" else _split(data, "train")
    missing = set(range(len(known.names))) - {p.label for p in trained}
    where = data.annotations
    if split != "train":
        missing &= {p.label for p in pictures}
        where = f"{data.annotations} ({split})"
    if missing:
        first = min(missing)
        more = f" (nor have {len(missing) - 1} others)" if len(missing) > 1 else ""
        seen = "" if split == "train" else f" but is in the {split} split"
        raise UserError(
            f"{where}: class {first} ({known.names[first]}) has no training picture{more}{seen}; "
            "allowed with config.data.missing=allow"
        )


def sampler(data: Data, source: PictureSource, stage_data: Any) -> np.ndarray | None:
    """f64[n] sampling weights of a stage's `sampler`; None = each picture once an epoch.

    weighted: 1 / count^power. balanced: 1 / count, so that classes are drawn equally often. mixN:
    N % of that and the rest natural; rows of 25, 50 and 75 make progressive balancing.
    """
    kind = stage_data.sampler
    if kind == "natural":
        return None
    labels = source.labels()
    per_class = np.bincount(labels)
    each = per_class[labels].astype(np.float64)
    if kind == "weighted":
        return each**-data.balance.power
    share = 1.0 if kind == "balanced" else int(kind.removeprefix("mix")) / 100
    return share / (each * (per_class > 0).sum()) + (1 - share) / len(labels)


def view_spec(data: Data, split: str) -> Views:
    """The views of a split other than training."""
    return data.val if split == "val" else data.test


def view_text(data: Data, sizes: Sequence[int], split: str) -> str:
    """How a split other than training sees a picture, in words; `sizes` are those of stages."""
    spec = view_spec(data, split)
    of_stages = f"{' or '.join(str(size) for size in dict.fromkeys(sizes))} px (the stage's)"
    size = f"{data.test_size} px" if data.test_size else of_stages
    what = "middle square" if data.keep_ratio else "squeezed to a square"
    parts = [size, what, f"scales {', '.join(f'{scale:g}' for scale in spec.scales)}"]
    parts += ["middle and 4 corners" if spec.crops == 5 else "1 crop"]
    parts += ["with mirror images" if spec.flip else "not mirrored"]
    return ", ".join(parts)


def side_of(data: Data, stage_data: Any, split: str) -> int:
    """Pixels of the side that the device sees."""
    return stage_data.size if split == "train" else data.test_size or stage_data.size


def prepare(
    data: Data, picture: Picture, rng: np.random.Generator, stage_data: Any, split: str
) -> dict[str, np.ndarray]:
    """One example's arrays (table in `task.py`). Raises: UserError for an unreadable picture."""
    side, how = side_of(data, stage_data, split), data.interpolation
    if split != "train":
        pixels = _views(data, picture, side, split)
    else:
        image = _load(data, picture, side)
        if data.keep_ratio:
            width, height = image.size
            short = min(width, height)
            left, top = (width - short) // 2, (height - short) // 2
            image = image.crop((left, top, left + short, top + short))
        if stage_data.augment == "none":
            pixels = images.resize(image, (side, side), None, how)
        else:
            options = {"full": data.full, "light": data.light, "strong": data.strong}
            pixels = augment.augmented(image, options[stage_data.augment], side, rng, how)
    numbers: dict[str, Any] = {name: np.int32(getattr(picture, name)) for name in _NUMBERS}
    return {"image": pixels, **numbers}


def _load(data: Data, picture: Picture, side: int) -> Any:
    """The decoded picture, large enough for `side` px."""
    if data.cache:
        return cache.load(picture, data.cache, data.cache_dir)
    return images.decode(picture.content, side, data.gap, picture.id if not picture.path else "")


def _views(data: Data, picture: Picture, side: int, split: str) -> np.ndarray:
    spec = view_spec(data, split)
    image = _load(data, picture, int(np.ceil(side * max(spec.scales))))
    return np.stack(
        [
            images.resize(image, (side, side), box, data.interpolation)
            for scale in spec.scales
            for box in images.boxes(image.size, scale, spec.crops, data.keep_ratio)
        ]
    )


def shapes(data: Data, stage_data: Any, split: str) -> dict[str, tuple[tuple[int, ...], Any]]:
    """name -> (shape of one example, dtype), as `prepare` makes them."""
    side, spec = side_of(data, stage_data, split), view_spec(data, split)
    views = () if split == "train" else (len(spec.scales) * spec.crops,)
    numbers: dict[str, Any] = {name: ((), np.int32) for name in _NUMBERS}
    return {"image": ((*views, side, side, 3), np.uint8), **numbers}


def audit(picture: Picture) -> str:
    """Opens and decodes a picture: "" or what is wrong with it."""
    return inspect(picture).error


def examples(data: Data, path: str) -> PictureSource:
    """Pictures of a file, a folder, or an annotation list, with or without labels.

    Raises: UserError for a path that is missing or holds none.
    """
    given, held = Path(path), media.held(path, images.SUFFIXES)
    if held:
        return PictureSource([Picture(file, file) for file in held])
    if not given.exists():
        raise UserError(f"--input={path} does not exist")
    if given.is_dir():
        files = sorted(p for p in given.rglob("*") if p.suffix.lower() in images.SUFFIXES)
        if not files:
            raise UserError(
                f"--input={path}: no pictures in it; allowed: {', '.join(images.SUFFIXES)}"
            )
        return PictureSource([Picture(str(p), str(p)) for p in files])
    if given.suffix.lower() in images.SUFFIXES:
        return PictureSource([Picture(path, path)])
    if given.suffix.lower() not in annotation_files.SUFFIXES:
        allowed = ", ".join((*images.SUFFIXES, *annotation_files.SUFFIXES))
        raise UserError(
            f"--input={path}: suffix {given.suffix!r}; allowed: a folder of pictures, or {allowed}"
        )
    listing = annotation_files.parse(path, labelled=False)
    folder, known = annotations.folder_of(listing, data.images), table(data)
    rows = listing.rows
    return PictureSource([annotations.picture(row, known, folder, labelled=False) for row in rows])


def thumbnail(picture: Picture) -> np.ndarray:
    """u8[1, h, w, 3], the shorter side 96 px, for the report."""
    return images.thumbnail(picture.content, 96, picture.id)[None]
