"""Class tables, class weights, head and tail."""

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.tasks.crop import class_balance, classes
from jaxact.tasks.crop.classes import Meaning
from jaxact.tasks.crop.config import Balance


def test_ai_challenger_has_the_sizes_of_its_heads():
    table = classes.build(classes.ai_challenger())
    sizes = len(table.names), len(table.crops), len(table.diseases), len(table.severities)
    assert sizes == (61, 10, 23, 3)
    crops = "Apple Cherry Corn Grape Citrus Peach Pepper Potato Strawberry Tomato"
    assert table.crops == tuple(crops.split())
    assert table.severities == ("healthy", "general", "serious") and table.diseases[0] == "healthy"
    assert np.bincount(table.severity_of).tolist() == [10, 27, 24]
    specific = classes.build(classes.ai_challenger(), "specific")
    assert len(specific.diseases) == 28 and len(set(table.names)) == 61
    table.require_heads("model.kind")


def test_ai_challenger_matches_the_id_ranges():
    table = classes.build(classes.ai_challenger())
    healthy = [k for k in range(61) if table.disease_of[k] == 0]
    assert healthy == [0, 6, 9, 17, 24, 27, 30, 33, 38, 41]
    single = [k for k in range(61) if table.severity_of[k] == 1]
    serious = [k for k in range(61) if table.severity_of[k] == 2]
    assert {3, 16, 60} <= set(single)
    # The twelve that the published metadata takes for general.
    assert {15, 19, 21, 23, 35, 37, 45, 47, 49, 51, 53, 55} <= set(serious)
    assert all(k - 1 in single for k in serious)
    names = {
        2: "Apple scab serious",
        16: "Corn dwarf mosaic virus",
        45: "Tomato bacterial spot serious",
        58: "Tomato yellow leaf curl virus general",
        60: "Tomato mosaic virus",
    }
    assert {k: table.names[k] for k in names} == names
    shared = {table.disease_of[k] for k in (7, 8, 42, 43)}  # powdery mildew of two crops
    assert len(shared) == 1


def test_val_support_by_severity_is_the_stated_one():
    """997 / 1566 / 1970 of the validation pictures by the right grades."""
    support = (
        "169 30 22 61 20 6 85 12 18 54 27 24 69 51 29 70 116 42 54 66 74 59 9 90 52 269 262 36 122 "
        "110 147 40 54 204 29 73 36 64 35 27 83 173 46 138 1 0 36 63 38 157 46 48 4 5 60 115 77 39 "
        "197 353 37"
    )
    table = classes.build(classes.ai_challenger())
    found = np.bincount(table.severity_of, [int(n) for n in support.split()])
    assert found.tolist() == [997, 1566, 1970]


def write(path, text):
    path.write_text(text)
    return path


def test_a_table_from_csv(tmp_path):
    path = write(
        tmp_path / "t.csv",
        "class_id,class,crop,disease,severity\n1,b,pea,rust,10\n0,a,pea,healthy,0\n"
        "2,c,pea,rust,2+\n3,d,bean,rust,\n",
    )
    table = classes.build(classes.read(path))
    assert table.names == ("a", "b", "c", "d") and table.crops == ("pea", "bean")
    assert table.disease_of == (0, 1, 1, 1) and table.severities == ("healthy", "2+", "10")
    assert table.severity_of == (0, 2, 1, -1)
    assert [table.severity(t) for t in ("10", "2+", "healthy", "", "1", "many")] == [
        2,
        1,
        0,
        -1,
        1,
        -2,
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("name\na\n", "no column 'class_id'"),
        ("class_id,name\n0,a\n2,c\n", "class_id 1 is missing"),
        ("class_id,name\n0,a\n0,c\n", r":3: class_id 0 is there twice"),
        ("class_id,name\nx,a\n", r":2: class_id 'x'"),
        ("class_id,name,crop,disease,severity\n0,a,pea,healthy,2\n", "contradicts the healthy"),
        ("class_id,name,crop,disease,severity\n0,a,pea,rust,0\n", r"'0' \(healthy\) contradicts"),
        ("class_id,name\n", "has no classes"),
    ],
)
def test_bad_tables(tmp_path, text, error):
    with pytest.raises(UserError, match=error) as found:
        classes.read(write(tmp_path / "t.csv", text))
    assert "t.csv" in str(found.value) and "\n" not in str(found.value)


def test_without_crops_there_is_only_the_label():
    table = classes.build([Meaning("a"), Meaning("b", "pea", "rust")])
    assert table.names == ("a", "b") and not table.crops and not table.severities
    with pytest.raises(UserError, match=r"config\.model\.kind: .*class_table"):
        table.require_heads("model.kind")


COUNTS = np.array([1, 0, 10, 100, 889])


def weights(counts, mode, beta=0.999, low=0.1, high=10.0):
    return class_balance.loss_weights(Balance(mode, beta, (low, high)), counts)


def test_weights_by_hand():
    n, k = COUNTS.sum(), len(COUNTS)
    some = COUNTS > 0
    for mode, raw in (
        ("inverse", n / (k * np.maximum(COUNTS, 1))),
        ("sqrt", np.sqrt(n / (k * np.maximum(COUNTS, 1)))),
    ):
        wanted = np.where(some, np.clip(raw, 0.1, 10), 0)
        wanted = wanted / wanted[some].mean()
        np.testing.assert_allclose(weights(COUNTS, mode), wanted, rtol=1e-6)
    found = weights(COUNTS, "effective", 0.9, 1e-9, 1e9)
    raw = (1 - 0.9) / (1 - 0.9 ** COUNTS[some].astype(float))
    np.testing.assert_allclose(found[some], raw / raw.mean(), rtol=1e-6)
    assert found[1] == 0
    assert weights(COUNTS, "none").tolist() == [1, 0, 1, 1, 1]


def test_effective_weights_are_one_per_example_before_the_clip():
    free = weights(COUNTS, "effective", 0.999, 1e-9, 1e9)
    clipped = weights(COUNTS, "effective", 0.999, 0.1, 10.0)
    scaled = free * COUNTS.sum() / (free * COUNTS).sum()
    wanted = np.where(COUNTS > 0, np.clip(scaled, 0.1, 10), 0)
    np.testing.assert_allclose(clipped, wanted / wanted[COUNTS > 0].mean(), rtol=1e-5)
    # beta near 1 is the inverse frequency, beta = 0 no weighting.
    near = weights(COUNTS, "effective", 1 - 1e-9)
    present = COUNTS[COUNTS > 0]
    inverse = weights(present, "inverse")
    np.testing.assert_allclose(near[COUNTS > 0], inverse, rtol=1e-5)
    flat = weights(COUNTS, "effective", 0.0)
    np.testing.assert_allclose(flat[COUNTS > 0], 1)


@pytest.mark.parametrize("mode", ["inverse", "sqrt", "effective", "none"])
def test_weights_have_mean_one_and_favour_the_rare(mode):
    found = weights(COUNTS, mode)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[COUNTS > 0].mean(), 1, rtol=1e-6)
    assert np.all(np.diff(found[[0, 2, 3, 4]]) <= 0)


def test_weights_from_a_file(tmp_path):
    path = write(tmp_path / "w.csv", "class_id,weight\n1,2.5\n0,0\n")
    assert class_balance.read_weights(path, 2).tolist() == [0, 2.5]
    for text, error in (
        ("class_id,weight\n0,1\n2,1\n", "no weight for class 1; allowed: a row for each of 3"),
        ("class_id,weight\n0,1\n", r"no weight for class 1 \(and 1 more\)"),
        ("class_id,weight\n3,1\n", r":2: class_id 3 of 3 classes; allowed: 0 to 2"),
        ("class_id,weight\n0,1\n0,1\n", "class_id 0 is there twice"),
        ("class_id,weight\n0,nan\n", "weight 'nan'; allowed: numbers from 0"),
        ("class_id,weight\n0,-1\n", "weight '-1'"),
        ("class_id\n0\n", "no column 'weight'"),
    ):
        with pytest.raises(UserError, match=error):
            class_balance.read_weights(write(tmp_path / "w.csv", text), 3)
    with pytest.raises(UserError, match="no such file"):
        class_balance.read_weights(tmp_path / "none.csv", 3)


def test_head_and_tail():
    counts = np.array([5, 1, 1, 9, 9, 3, 2, 1])

    def numbers(counts, share=0.25):
        return np.flatnonzero(class_balance.tail(counts, share)).tolist()

    assert numbers(counts) == [1, 2] and numbers(-counts) == [3, 4]
    assert numbers(counts, 0.5) == [1, 2, 6, 7]
    assert len(numbers(np.ones(61))) == 15
    assert numbers(np.array([1, 2, 3])) == []
