"""Class tables: what crop, disease and severity each class stands for.

A table is built in (`ai_challenger`), a CSV (class_id, name, crop, disease, severity), or implied
by annotations with such columns. The sizes of all heads follow from it.
"""

import csv
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxact.config import UserError

HEALTHY = "healthy"
_NO_DISEASE = ("healthy", "none", "no disease")
UNGRADED = ("", "healthy", "none", "0")  # what a healthy class may have for a severity

# AI Challenger 2018: in label order, each crop with its diseases and their number of grades
# (0 = healthy, 1 = one class without grades, 2 = a general and a serious class).
_AI_CHALLENGER: dict[str, tuple[tuple[str, int], ...]] = {
    "Apple": ((HEALTHY, 0), ("scab", 2), ("frogeye spot", 1), ("cedar rust", 2)),
    "Cherry": ((HEALTHY, 0), ("powdery mildew", 2)),
    "Corn": (
        (HEALTHY, 0),
        ("cercospora gray leaf spot", 2),
        ("puccinia polysora rust", 2),
        ("curvularia leaf spot", 2),
        ("dwarf mosaic virus", 1),
    ),
    "Grape": ((HEALTHY, 0), ("black rot", 2), ("black measles", 2), ("leaf blight", 2)),
    "Citrus": ((HEALTHY, 0), ("greening", 2)),
    "Peach": ((HEALTHY, 0), ("bacterial spot", 2)),
    "Pepper": ((HEALTHY, 0), ("scab", 2)),
    "Potato": ((HEALTHY, 0), ("early blight", 2), ("late blight", 2)),
    "Strawberry": ((HEALTHY, 0), ("scorch", 2)),
    "Tomato": (
        (HEALTHY, 0),
        ("powdery mildew", 2),
        ("bacterial spot", 2),
        ("early blight", 2),
        ("late blight", 2),
        ("leaf mold", 2),
        ("target spot", 2),
        ("septoria", 2),
        ("spider mite", 2),
        ("yellow leaf curl virus", 2),
        ("mosaic virus", 1),
    ),
}


@dataclasses.dataclass(frozen=True)
class Meaning:
    """One class: its name, and its crop, disease and severity as texts ("" = not known)."""

    name: str
    crop: str = ""
    disease: str = ""
    severity: str = ""


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """All classes in label order. Without crops and diseases only the label can be learnt."""

    names: tuple[str, ...]
    crop_of: tuple[int, ...] = ()  # class -> crop
    disease_of: tuple[int, ...] = ()  # class -> disease, 0 = healthy where a class is
    severity_of: tuple[int, ...] = ()  # class -> severity, -1 = not graded
    crops: tuple[str, ...] = ()
    diseases: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()  # () = no class is graded

    def require_heads(self, field: str) -> None:
        """For tasks with heads beside the label's. Raises: UserError naming the config field."""
        if not self.crops or not self.diseases:
            raise UserError(
                f"config.{field}: the classes have no crops and diseases; allowed with a "
                "config.data.class_table (ai_challenger or a CSV of class_id,name,crop,disease,"
                "severity) or annotations with the columns crop and disease"
            )

    def severity(self, text: str) -> int:
        """The grade that a text means: its name or its number; -1 for "". -2 = none of these."""
        grade = text.strip().lower()
        if not grade or grade == "-1":
            return -1
        names = [name.lower() for name in self.severities]
        alias = {"mild": "general", "g": "general", "s": "serious", "severe": "serious"}
        for known in (grade, alias.get(grade)):
            if known in names:
                return names.index(known)
        return int(grade) if grade.isdigit() and int(grade) < len(names) else -2


def build(meanings: Sequence[Meaning], diseases: str = "agnostic") -> ClassTable:
    """The table of these classes.

    Args:
      diseases: "agnostic" (a disease of two crops is one) or "specific" (it is two); all healthy
        classes share one entry, the first.

    Crops and diseases are numbered as they first appear, grades sorted after "healthy".
    """
    names = tuple(m.name for m in meanings)
    if not all(m.crop and m.disease for m in meanings):
        return ClassTable(names)
    known = [
        dataclasses.replace(m, disease=HEALTHY, severity=HEALTHY)
        if m.disease.lower() in _NO_DISEASE
        else m
        for m in meanings
    ]
    shared = diseases == "agnostic"
    kinds = [
        m.disease if shared or m.disease == HEALTHY else f"{m.crop} {m.disease}" for m in known
    ]
    crops = tuple(dict.fromkeys(m.crop for m in known))
    disease_names = tuple(dict.fromkeys([HEALTHY] * (HEALTHY in kinds) + kinds))
    grades = {m.severity for m in known if m.disease != HEALTHY} - {""}
    severities = (HEALTHY, *sorted(grades, key=_natural)) if grades else ()
    return ClassTable(
        names,
        tuple(crops.index(m.crop) for m in known),
        tuple(disease_names.index(kind) for kind in kinds),
        tuple(severities.index(m.severity) if m.severity in severities else -1 for m in known),
        crops,
        disease_names,
        severities,
    )


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts "2" before "10"."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts)


def ai_challenger() -> tuple[Meaning, ...]:
    """The 61 classes of AI Challenger 2018: 10 crops, 22 diseases, grades 10 / 27 / 24.

    A disease with a single class counts as "general". Grades come from the classes themselves: the
    published metadata reads names like "(Fungus, Serious)" as general, 12 classes in all.
    """
    classes = []
    for crop, diseases in _AI_CHALLENGER.items():
        for disease, grades in diseases:
            if disease == HEALTHY:
                classes.append(Meaning(f"{crop} healthy", crop, disease, ""))
                continue
            for grade in ("general", "serious")[:grades]:
                name = f"{crop} {disease}" + (f" {grade}" if grades == 2 else "")
                classes.append(Meaning(name, crop, disease, grade))
    return tuple(classes)


def as_rows(meanings: Sequence[Meaning]) -> list[dict[str, str]]:
    """The rows of a table, as a run's config.json keeps them; "" for what is not known."""
    return [
        {"class_id": str(k), **dataclasses.asdict(meaning)} for k, meaning in enumerate(meanings)
    ]


def read(path: str | Path) -> tuple[Meaning, ...]:
    """The classes of a CSV with the columns class_id, name (or class), and crop, disease, severity;
    or those that a run's config.json holds.

    Raises: UserError for a missing file or column, ids that are not 0..n-1 once each, a severity
    that contradicts the class.
    """
    by_id: dict[int, Meaning] = {}
    for number, (where, row) in rows_by_class(path).items():
        name = row.get("name") or row.get("class") or str(number)
        given = (row.get(field, "").strip() for field in ("crop", "disease", "severity"))
        by_id[number] = checked(Meaning(name, *given), where)
    if sorted(by_id) != list(range(len(by_id))):
        missing = min(set(range(max(by_id) + 1)) - by_id.keys())
        raise UserError(f"{path}: class_id {missing} is missing; allowed: 0 to the highest, all")
    if not by_id:
        raise UserError(f"{path}: has no classes")
    return tuple(by_id[k] for k in range(len(by_id)))


def checked(meaning: Meaning, where: str) -> Meaning:
    """The class itself, its healthy grades as "". Raises: UserError for one that contradicts it."""
    grade = meaning.severity.strip()
    if meaning.disease.lower() in _NO_DISEASE:
        if grade.lower() not in UNGRADED:
            raise UserError(
                f"{where}: severity {grade!r} contradicts the healthy class {meaning.name!r}; "
                "allowed: 0, healthy or nothing"
            )
        grade = ""
    elif meaning.disease and grade.lower() in ("0", HEALTHY):
        raise UserError(
            f"{where}: severity {grade!r} (healthy) contradicts class {meaning.name!r} with "
            f"disease {meaning.disease!r}; allowed: a grade, or nothing"
        )
    return dataclasses.replace(meaning, severity=grade)


def rows_by_class(
    path: str | Path, needed: Sequence[str] = ()
) -> dict[int, tuple[str, Mapping[str, str]]]:
    """class_id -> (file and line, row) of a CSV with these columns; or of a run's config.json.

    Raises: UserError for a missing file or column, an id that is no number from 0 or is repeated.
    """
    by_id: dict[int, tuple[str, Mapping[str, str]]] = {}
    for line, row in _rows(path, ("class_id", *needed)):
        where, text = f"{path}:{line}", row["class_id"]
        if not re.fullmatch(r"\d+", text.strip()):
            raise UserError(f"{where}: class_id {text!r}; allowed: numbers from 0")
        if int(text) in by_id:
            raise UserError(f"{where}: class_id {int(text)} is there twice; allowed: once")
        by_id[int(text)] = where, row
    return by_id


def _rows(path: str | Path, needed: Sequence[str]) -> list[tuple[int, Mapping[str, str]]]:
    """(line, row) of a CSV with at least these columns."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    if Path(path).suffix.lower() == ".json":
        return _stored(path)
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        columns = reader.fieldnames or ()
        absent = [name for name in needed if name not in columns]
        if absent:
            raise UserError(f"{path}: has no column {absent[0]!r}; it has {', '.join(columns)}")
        return [(reader.line_num, row) for row in reader]


def _stored(path: str | Path) -> list[tuple[int, Mapping[str, str]]]:
    """(number, row) of the classes in a run's config.json."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    rows = content.get("class_table") if isinstance(content, dict) else None
    fields = {"class_id", "name", "crop", "disease", "severity"}
    sound = isinstance(rows, list) and all(
        isinstance(row, dict)
        and row.keys() == fields
        and all(isinstance(text, str) for text in row.values())
        for row in rows
    )
    if not sound or not rows:
        raise UserError(f"{path}: holds no class_table; allowed: a CSV, or a run's config.json")
    return list(enumerate(rows))
