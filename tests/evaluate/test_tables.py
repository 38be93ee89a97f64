"""CSV text."""

import numpy as np

from jaxact.evaluate import tables
from jaxact.evaluate.metrics import Confusion


def test_a_confusion_table_has_true_classes_as_rows():
    text = tables.confusion_table(Confusion(np.array([[3, 1], [0, 2]])), ("a, b", "c"))
    assert text == 'true \\ predicted,"a, b",c\n"a, b",3,1\nc,0,2\n'
