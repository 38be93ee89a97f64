"""The report page: whole, self-contained, escaped, and saying what it was given."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from jaxact.evaluate import report

EVIL = "<script>alert('x')</script> & \"q\" \x00\x1b"
VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.get_starttag_text().endswith("/>"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag, kind=""):
        return [a for t, a in self.tags if t == tag and kind in ["", *a.get("class", "").split()]]

    @property
    def words(self):
        return "\n".join(self.text)


def frames(count=9, side=(24, 32)):
    ramp = np.linspace(0, 255, count).astype(np.uint8)
    return np.broadcast_to(ramp[:, None, None, None], (count, *side, 3))


def rows():
    for step in range(0, 1000, 10):
        yield {"step": step, "epoch": step / 100, "split": "train", "loss": 1 / (1 + step)}
    for step in range(0, 1000, 100):
        yield {"step": step, "split": "val", "loss": 0.5, "top1": step / 1000, "note": "text"}


def full(names=("walk", "run", EVIL)):
    return report.Report(
        title=f"title {EVIL}",
        summary=EVIL,
        results=[
            report.Result("top-1, val", 0.91256, "ema", f"run --x={EVIL}", "0.961 (theirs)"),
            report.Result("parameters", 2538717),
        ],
        metrics=list(rows()),
        confusion=np.array([[8, 2, 0], [1, 9, 0], [0, 5, 5]]),
        classes=names,
        worst=[report.Example(EVIL, names[0], names[1], 0.987, frames())],
        best=[report.Example("b", names[2], names[2], 1.0)],
        config={"model": {"name": EVIL}, "lr": 0.012},
        environment={"jax": "0.10.2", EVIL: EVIL},
    )


def test_page_is_self_contained_and_escaped(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write(path, full())
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "href" not in attributes
        assert attributes.get("src", "data:").startswith("data:")
    assert (
        "url(" not in text
        and "@import" not in text
        and "http" not in re.sub("http-equiv", "", text)
    )
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
    assert page.words.count("<script>alert('x')</script>") >= 9
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "prefers-color-scheme:dark" in text and "width=device-width" in text


def test_page_says_what_it_was_given():
    page = Page(report.page(full(("walk", "run", "jump"))))
    for words in ("0.9126", "ema", "0.961 (theirs)", "2,538,717", "98.7%", '"lr": 0.012', "0.10.2"):
        assert words in page.words
    assert "walk as run: 2 (20.0%)" in page.words
    assert len(page.all("rect", "hit")) == 3 and len(page.all("rect", "miss")) == 3
    classes = page.words[page.words.index("F1") :]
    # F1: run 18/26, jump 10/15, walk 16/19; the lowest comes first.
    assert classes.index("jump") < classes.index("run") < classes.index("walk")
    for number in ("0.667", "0.692", "0.842", "0.889", "0.562", "0.800"):
        assert number in classes


def test_curves_lie_inside_their_chart_and_share_colours():
    text = report.page(full())
    captions = re.findall(r"<figcaption><b>(\w+)</b>", text)
    assert captions == ["loss", "top1"]  # "epoch" and text are no curves
    paths = re.findall(r'<path d="([^"]+)" class="line (c\d)"', text)
    assert [colour for _, colour in paths] == ["c0", "c1", "c1"]
    for path, _ in paths:
        points = np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path)[1:]])
        assert (points >= 0).all() and (points <= [560, 240]).all()
    train = np.array([[float(v) for v in p.split()] for p in re.split("[ML]", paths[0][0])[1:]])
    assert len(train) == 100
    assert (np.diff(train[:, 0]) > 0).all() and (np.diff(train[:, 1]) >= 0).all()  # falls


def test_long_broken_and_resumed_curves():
    long = [{"step": s, "split": "train", "loss": float(s)} for s in range(5000)]
    text = report.page(report.Report("t", metrics=long))
    (path,) = re.findall(r'<path d="([^"]+)" class="line', text)
    assert path.count("L") == report.POINTS - 1
    values = [1.0, 2.0, float("nan"), 3.0, 4.0, float("inf"), 5.0]
    broken = [{"step": i, "loss": v} for i, v in enumerate(values)]
    (path,) = re.findall(
        r'<path d="([^"]+)" class="line', report.page(report.Report("t", metrics=broken))
    )
    assert (path.count("M"), path.count("L")) == (3, 2)
    again = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0}]
    text = report.page(report.Report("t", metrics=again))
    assert "step 2: 2<" in text and "step 2: 9<" not in text
    assert "nan" in report.page(report.Report("t", metrics=[{"step": 1, "loss": float("nan")}]))
    with pytest.raises(ValueError, match="without a step"):
        report.page(report.Report("t", metrics=[{"loss": 1.0}]))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 1.0], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([3.0, 3.0], [1, 2, 3, 4, 5]),
        ([0.0, 0.0], [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
        ([1e-6, 0.012], [0, 0.005, 0.01, 0.015]),
        ([-250.0, 990.0], [-500, 0, 500, 1000]),
    ],
)
def test_ticks_are_round_and_cover_the_data(values, ticks):
    got, low, high = report._ticks(values, fit=False)
    assert got == pytest.approx(ticks)
    assert low <= min(values) and high >= max(values)
    inner, low, high = report._ticks(values, fit=True)
    assert all(low <= tick <= high for tick in inner)


def test_thumbnails_are_a_strip_of_frames():
    text = report.page(full())
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert strip.shape == (72, 6 * 96, 3)
    tones = strip[36, 48::96, 0].astype(int)
    np.testing.assert_allclose(tones, np.linspace(0, 255, 9)[[0, 2, 3, 5, 6, 8]], atol=3)
    short = report.Example("a", "x", "x", 0.5, frames(2))
    assert "img" in report.page(report.Report("t", worst=[short]))
    bad = report.Example("a", "x", "x", 0.5, np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"u8\[t, h, w, 3\]"):
        report.page(report.Report("t", worst=[bad]))


@pytest.mark.parametrize("classes", [1, 13, 60, 120])
def test_any_number_of_classes(classes):
    rng = np.random.RandomState(0)
    table = rng.poisson(0.2, (classes, classes)) + 9 * np.eye(classes, dtype=int)
    table[0] = 0  # a class without examples
    text = report.page(report.Report("t", confusion=table, classes=[]))
    page = Page(text)
    cells = page.all("rect", "hit") + page.all("rect", "miss")
    assert len(cells) == np.count_nonzero(table)
    assert text.count("%)</title>") == len(cells)
    assert all(0 < float(cell["fill-opacity"]) <= 1 for cell in cells)


def test_mismatched_tables_are_refused():
    with pytest.raises(ValueError, match="2 class names for a confusion matrix of 3"):
        report.page(report.Report("t", confusion=np.eye(3), classes=["a", "b"]))
    with pytest.raises(ValueError, match="square"):
        report.page(report.Report("t", confusion=np.ones((2, 3))))


def test_empty_sections_are_left_out():
    page = Page(report.page(report.Report("only a title")))
    assert "only a title" in page.words
    assert not page.all("section")
