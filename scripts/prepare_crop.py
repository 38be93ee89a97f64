"""Makes the CSV for `configs/crop.py` from several layouts, its class table, or cleans a CSV.

    python scripts/prepare_crop.py ai_challenger --source DIR --out labels.csv [--drop 44 45]
    python scripts/prepare_crop.py metadata --train-dir DIR --val-dir DIR --train-meta train.csv \\
        --val-meta val.csv --out labels.csv
    python scripts/prepare_crop.py folders --source DIR --out labels.csv [--val 0.2] [--seed 0]
    python scripts/prepare_crop.py table --out classes.csv
    python scripts/prepare_crop.py clean --annotations labels.csv --out clean.csv [--images DIR]

`ai_challenger`: DIR holds the unpacked trainingset and validationset, each with its annotation JSON
and a folder `images`. Writes file,label,class,crop,disease,severity,split with paths relative to
DIR (then --config.data.images=DIR), and beside it the class table, `<out>_classes.csv`. `--drop`
leaves classes out and renumbers the rest, as many did with the two of a single picture.
`metadata`: the layout DIR/class_<label, two digits>/<image_name> with a CSV for each split that has
the columns image_name and label_61. Paths are written relative to the folder of `--out`. Crop,
disease and severity come from the class table, not from the CSV: a published one calls the twelve
classes named like "(Fungus, Serious)" general.
`folders`: DIR/<class name>/ with the pictures of a class, at any depth, or that below DIR/train,
DIR/val (valid, validation) and DIR/test. Without such splits the share `--val` of each class, drawn
by `--seed` and rounded, is for validation, but never the only picture of a class. Names like
`Apple___black_rot` tell crop and disease. Paths are written relative to the folder of `--out`.
`clean`: the same CSV without the rows whose pictures cannot be read; prints those, one a line.
"""

import argparse
import csv
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxact.config import UserError
from jaxact.data import images
from jaxact.tasks.crop import annotation_files, audit, classes
from jaxact.tasks.crop.annotations import Picture, folder_of, picture
from jaxact.tasks.crop.classes import Meaning

COLUMNS = ("file", "label", "class", "crop", "disease", "severity", "split")
SPLIT_FOLDERS = {"train": "train", **dict.fromkeys(("val", "valid", "validation"), "val")}
SPLIT_FOLDERS["test"] = "test"
SPLITS = {"train": "*train*annotations*.json", "val": "*validation*annotations*.json"}


def annotation_file(source: Path, pattern: str) -> Path:
    """The one JSON of this name under a folder. Raises: UserError for none or several."""
    files = sorted(source.rglob(pattern))
    if len(files) != 1:
        raise UserError(f"{source}: {len(files)} files {pattern}; needed: one, see --source")
    return files[0]


def ai_challenger(source: Path, drop: list[int]) -> tuple[list[list[str]], list[Meaning]]:
    """The rows of both splits and the classes kept. Raises: UserError naming the record."""
    everything = classes.ai_challenger()
    wrong = [k for k in drop if not 0 <= k < len(everything)]
    if wrong:
        raise UserError(f"--drop {wrong[0]}; allowed: classes 0 to {len(everything) - 1}")
    kept = [k for k in range(len(everything)) if k not in drop]
    number = {old: new for new, old in enumerate(kept)}
    table = classes.build(everything)
    rows = []
    for split, pattern in SPLITS.items():
        listing = annotation_files.parse(annotation_file(source, pattern))
        folder = folder_of(listing, "").relative_to(source)
        for row in listing.rows:
            label = picture(row, table, folder).label
            if label in number:
                file = (folder / row.file).as_posix()
                rows.append([file, str(number[label]), *values(everything[label]), split])
    return rows, [everything[k] for k in kept]


def metadata(
    pictured: dict[str, Path], tables: dict[str, Path], out: Path
) -> tuple[list[list[str]], str]:
    """Rows of both splits, and a line that says how many grades of the CSVs they correct.

    Raises: UserError for a missing file or column, or a label out of range.
    """
    everything = classes.ai_challenger()
    grades = classes.build(everything)
    rows, wrong, corrected = [], 0, set()
    for split, path in tables.items():
        for where, name, label, severity in _metadata_rows(path):
            if not re.fullmatch(r"\d+", label) or int(label) >= len(everything):
                raise UserError(f"{where}: label_61 {label!r}; allowed: 0 to {len(everything) - 1}")
            number = int(label)
            file = pictured[split] / f"class_{number:02d}" / name
            relative = Path(os.path.relpath(file, out.parent)).as_posix()
            rows.append([relative, str(number), *values(everything[number]), split])
            if severity and grades.severity(severity) != grades.severity_of[number]:
                wrong += 1
                corrected.add(number)
    named = f" (classes {' '.join(map(str, sorted(corrected)))})" if corrected else ""
    return rows, f"severity: {wrong} of {len(rows)} rows corrected by the class table{named}"


def folders(source: Path, share: float, seed: int, out: Path) -> list[list[str]]:
    """Rows of one folder per class. Raises: UserError for a bad share, or no pictures."""
    if not 0 <= share < 1:
        raise UserError(f"--val {share}; allowed: a share, 0 to below 1")
    there = {p.name.lower(): p for p in sorted(source.glob("*")) if p.is_dir()}
    split = {name: kind for name, kind in SPLIT_FOLDERS.items() if name in there}
    if "train" in split and len(split) < len(there):
        other = next(name for name in there if name not in split)
        raise UserError(f"{there[other]}: stands beside train; allowed: {', '.join(SPLIT_FOLDERS)}")
    parts = {there[name]: kind for name, kind in split.items()} if "train" in split else {}
    entries: list[tuple[Path, str, str]] = []  # file, class, split or ""
    for part, kind in (parts or {source: ""}).items():
        for folder in sorted(p for p in part.glob("*") if p.is_dir()):
            paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in images.SUFFIXES)
            entries += [(file, folder.name, kind) for file in paths]
    names = sorted({name for _, name, _ in entries})
    if not names:
        raise UserError(f"{source}: no pictures in folders of their classes; see --source")
    rows = []
    for label, name in enumerate(names):
        crop, _, disease = name.partition("___")
        meaning = Meaning(name, crop if disease else "", disease)
        mine = [entry for entry in entries if entry[1] == name]
        order = np.random.default_rng((seed, label)).permutation(len(mine))
        held = set(order[: min(round(share * len(mine)), len(mine) - 1)].tolist())
        for index, (file, _, kind) in enumerate(mine):
            relative = Path(os.path.relpath(file, out.parent)).as_posix()
            kind = kind or ("val" if index in held else "train")
            rows.append([relative, str(label), *values(meaning), kind])
    return rows


def _metadata_rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(file and line, image_name, label_61, severity) of each row; healthy grades as 0."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        for column in ("image_name", "label_61"):
            if column not in (reader.fieldnames or ()):
                known = ", ".join(reader.fieldnames or ())
                raise UserError(f"{path}: has no column {column!r}; it has {known}")
        for row in reader:
            grade = (row.get("severity") or "").strip()
            grade = "0" if grade.lower() in classes.UNGRADED else grade
            name, label = row["image_name"].strip(), row["label_61"].strip()
            yield f"{path}:{reader.line_num}", name, label, grade if "severity" in row else ""


def values(meaning: Meaning) -> list[str]:
    """A class in the order of the columns."""
    return [meaning.name, meaning.crop, meaning.disease, meaning.severity]


def write(path: Path, rows: list[list[str]]) -> None:
    """Writes a CSV, its head included in the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    print(f"{path}: {len(rows) - 1} rows")


def write_table(path: Path, classes: list[Meaning]) -> None:
    """Writes a class table."""
    head = ["class_id", "name", "crop", "disease", "severity"]
    write(path, [head, *([str(k), *values(meaning)] for k, meaning in enumerate(classes))])


def clean(annotations: Path, images: str, out: Path) -> None:
    """Writes the lines of a CSV whose pictures can be read, names the others."""
    listing = annotation_files.parse(annotations)
    folder = folder_of(listing, images)
    with open(annotations, newline="", encoding="utf-8-sig") as file:
        head, *lines = list(csv.reader(file))
    kept = [head]
    for row, line in zip(listing.rows, (line for line in lines if line), strict=True):
        error = audit.inspect(Picture(row.file, str(folder / row.file))).error
        if error:
            print(error, file=sys.stderr)
        else:
            kept.append(line)
    print(f"{len(lines) - len(kept) + 1} of {len(lines)} cannot be read")
    write(out, kept)


def main(arguments: list[str] | None = None) -> int:
    """Does one of the five jobs; returns 2 for the user's mistakes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name in ("ai_challenger", "metadata", "folders", "table", "clean"):
        kind = kinds.add_parser(name)
        kind.add_argument("--out", type=Path, required=True, help="CSV to write")
        if name == "ai_challenger":
            kind.add_argument("--source", type=Path, required=True, help="folder of both sets")
            kind.add_argument("--drop", type=int, nargs="*", default=[], help="classes left out")
        if name == "folders":
            kind.add_argument("--source", type=Path, required=True, help="folder of class folders")
            kind.add_argument("--val", type=float, default=0.2, help="share held out")
            kind.add_argument("--seed", type=int, default=0, help="which pictures are held out")
        for split in ("train", "val") if name == "metadata" else ():
            kind.add_argument(f"--{split}-dir", type=Path, required=True, help="folder of classes")
            kind.add_argument(f"--{split}-meta", type=Path, required=True, help="its CSV")
        if name == "clean":
            kind.add_argument("--annotations", type=Path, required=True, help="CSV to clean")
            kind.add_argument("--images", default="", help="folder of the pictures")
    options = parser.parse_args(arguments)
    try:
        if options.kind == "table":
            write_table(options.out, list(classes.ai_challenger()))
        elif options.kind == "metadata":
            pictured = {"train": options.train_dir, "val": options.val_dir}
            tables = {"train": options.train_meta, "val": options.val_meta}
            rows, corrected = metadata(pictured, tables, options.out)
            write(options.out, [list(COLUMNS), *rows])
            print(corrected)
        elif options.kind == "folders":
            rows = folders(options.source, options.val, options.seed, options.out)
            write(options.out, [list(COLUMNS), *rows])
        elif options.kind == "clean":
            if options.annotations.suffix.lower() != ".csv":
                raise UserError(f"--annotations {options.annotations}: suffix must be .csv")
            clean(options.annotations, options.images, options.out)
        else:
            rows, kept = ai_challenger(options.source, options.drop)
            write(options.out, [list(COLUMNS), *rows])
            write_table(options.out.with_name(f"{options.out.stem}_classes.csv"), kept)
    except UserError as error:
        print(f"prepare_crop: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
