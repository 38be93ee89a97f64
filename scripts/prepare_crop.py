"""Makes the CSV of `configs/crop.py` from AI Challenger 2018, its class table, or cleans a CSV.

    python scripts/prepare_crop.py ai_challenger --source DIR --out labels.csv [--drop 44 45]
    python scripts/prepare_crop.py table --out classes.csv
    python scripts/prepare_crop.py clean --annotations labels.csv --out clean.csv [--images DIR]

`ai_challenger`: DIR holds the unpacked trainingset and validationset, each with its annotation JSON
and a folder `images`. Writes file,label,class,crop,disease,severity,split with paths relative to
DIR (then --config.data.images=DIR), and beside it the class table, `<out>_classes.csv`. `--drop`
leaves classes out and renumbers the rest, as many did with the two of a single picture.
`clean`: the same CSV without the rows whose pictures cannot be read, which are named one a line.
"""

import argparse
import csv
import sys
from pathlib import Path

from jaxact.config import UserError
from jaxact.data import class_table, image_audit, picture_lists, pictures
from jaxact.data.class_table import Meaning
from jaxact.data.pictures import Picture

COLUMNS = ("file", "label", "class", "crop", "disease", "severity", "split")
SPLITS = {"train": "*train*annotations*.json", "val": "*validation*annotations*.json"}


def annotation_file(source: Path, pattern: str) -> Path:
    """The one JSON of this name under a folder. Raises: UserError for none or several."""
    found = sorted(source.rglob(pattern))
    if len(found) != 1:
        raise UserError(f"{source}: {len(found)} files {pattern}; needed: one, see --source")
    return found[0]


def ai_challenger(source: Path, drop: list[int]) -> tuple[list[list[str]], list[Meaning]]:
    """The rows of both splits and the classes kept. Raises: UserError naming the record."""
    everything = class_table.ai_challenger()
    wrong = [k for k in drop if not 0 <= k < len(everything)]
    if wrong:
        raise UserError(f"--drop {wrong[0]}; allowed: classes 0 to {len(everything) - 1}")
    kept = [k for k in range(len(everything)) if k not in drop]
    number = {old: new for new, old in enumerate(kept)}
    table = class_table.build(everything)
    rows = []
    for split, pattern in SPLITS.items():
        listing = picture_lists.parse(annotation_file(source, pattern))
        folder = pictures.folder_of(listing, "").relative_to(source)
        for row in listing.rows:
            label = pictures.picture(row, table, folder).label
            if label in number:
                file = (folder / row.file).as_posix()
                rows.append([file, str(number[label]), *values(everything[label]), split])
    return rows, [everything[k] for k in kept]


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
    listing = picture_lists.parse(annotations)
    folder = pictures.folder_of(listing, images)
    with open(annotations, newline="", encoding="utf-8-sig") as file:
        head, *lines = list(csv.reader(file))
    kept = [head]
    for row, line in zip(listing.rows, (line for line in lines if line), strict=True):
        error = image_audit.inspect(Picture(row.file, str(folder / row.file))).error
        if error:
            print(error, file=sys.stderr)
        else:
            kept.append(line)
    print(f"{len(lines) - len(kept) + 1} of {len(lines)} cannot be read")
    write(out, kept)


def main(arguments: list[str] | None = None) -> int:
    """Does one of the three; 2 for the user's mistakes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name in ("ai_challenger", "table", "clean"):
        kind = kinds.add_parser(name)
        kind.add_argument("--out", type=Path, required=True, help="CSV to write")
        if name == "ai_challenger":
            kind.add_argument("--source", type=Path, required=True, help="folder of both sets")
            kind.add_argument("--drop", type=int, nargs="*", default=[], help="classes left out")
        if name == "clean":
            kind.add_argument("--annotations", type=Path, required=True, help="CSV to clean")
            kind.add_argument("--images", default="", help="folder of the pictures")
    options = parser.parse_args(arguments)
    try:
        if options.kind == "table":
            write_table(options.out, list(class_table.ai_challenger()))
        elif options.kind == "clean":
            if options.annotations.suffix.lower() != ".csv":
                raise UserError(f"--annotations {options.annotations}: suffix must be .csv")
            clean(options.annotations, options.images, options.out)
        else:
            rows, classes = ai_challenger(options.source, options.drop)
            write(options.out, [list(COLUMNS), *rows])
            write_table(options.out.with_name(f"{options.out.stem}_classes.csv"), classes)
    except UserError as error:
        print(f"prepare_crop: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
