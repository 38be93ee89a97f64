"""Tables as CSV text."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxact.evaluate.metrics import Confusion


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """A line for each row, ended by a line feed."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def confusion_table(confusion: Confusion, classes: Sequence[str]) -> str:
    """CSV text: rows are true classes, columns predictions."""
    counts = zip(classes, np.asarray(confusion.table).tolist(), strict=True)
    return csv_text([("true \\ predicted", *classes), *((name, *row) for name, row in counts)])
