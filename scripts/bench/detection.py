"""Trains the detection recipes of laptop size with the real command; prints their tables.

    python scripts/bench/detection.py salads --source DIR --out build/salads
    python scripts/bench/detection.py composed --source DIR --out build/composed
    python scripts/bench/detection.py drawn --out build/drawn

`salads`: DIR holds salads50_mid_svm.npz and salads50_mid_edtcn.npz. The five folds of 50Salads are
trained from the first file's scores (`configs/adatad.py:salads`). Beside them stand labels taken
from either file's scores frame by frame: of each frame the best class, a run of equal labels being
a detection whose score is the mean of its class's probability (the SVM's values through a softmax).
All rows are scored by the same functions, each fold by itself; the mean of the folds is printed.
The second file has half as many rows of the same videos.
`composed`: DIR holds labels.csv and videos (fight_surv). `:composed` and its `_frozen` and `_full`
on the same videos, one table row each: mAP of the test videos as training went on.
`drawn`: the same for `:drawn`, whose videos are made here.
A run that is there already is not trained again.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from jaxact.tasks.detection import framewise as segmentation
from jaxact.tasks.detection import mean_ap
from jaxact.tasks.detection.mean_ap import Instances

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "configs/adatad.py"
FOLDS = (1, 2, 3, 4, 5)
BACKGROUND = 0
COLUMNS = ("mAP", "mAP@0.3", "mAP@0.5", "mAP@0.7", "f1@10", "f1@25", "f1@50", "edit", "accuracy")
MODES = {
    "": "adapters in a random ViT",
    "_frozen": "the same ViT, detector alone",
    "_full": "the same ViT, everything learns",
}


def run(arguments: list[str], log: Path) -> None:
    """One command of the repository. Raises CalledProcessError; what it said is kept."""
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(" ".join(command) + "\n" + ended.stdout + ended.stderr)
    if ended.returncode:
        print(ended.stderr[-2000:], file=sys.stderr)
        ended.check_returncode()


def trained(variant: str, workdir: Path, flags: list[str]) -> dict:
    """What results.json says of a training, which is done first where it is missing."""
    results = workdir / "results.json"
    if not results.is_file():
        given = [f"--config={RECIPE}:{variant}", f"--workdir={workdir}", *flags]
        run(["-m", "jaxact.main", *given], workdir.with_suffix(".log"))
    return json.loads(results.read_text())


# -------------------------------------------------------------------------------------- 50Salads


def framewise(path: Path, fold: int) -> dict[str, float]:
    """Scores of one fold's videos labelled frame by frame."""
    with np.load(path, allow_pickle=False) as archive:
        truth, scores, offsets, split = (
            archive[name] for name in ("gt", "scores", "offsets", "split")
        )
    if not np.allclose(scores.sum(1), 1, atol=1e-3):
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores = scores / scores.sum(1, keepdims=True)
    spans = [
        slice(start, end)
        for (start, end), part in zip(itertools.pairwise(offsets), split, strict=True)
        if part == fold
    ]
    labels = [scores[span].argmax(1) for span in spans]
    wanted = [truth[span].astype(np.int64) for span in spans]
    detections = joined(
        [
            instances(n, x, scores[span])
            for n, (x, span) in enumerate(zip(labels, spans, strict=True))
        ]
    )
    real = joined([instances(n, x, None) for n, x in enumerate(wanted)])
    mean = mean_ap.evaluate(real, detections, mean_ap.THUMOS, scores.shape[1])
    return mean.numbers() | segmentation.evaluate(labels, wanted, BACKGROUND)


def instances(number: int, labels: np.ndarray, scores: np.ndarray | None) -> Instances:
    """The runs of one video's labels i[t]; scores f[t, k] give theirs."""
    spans, kinds = segmentation.segments(labels, BACKGROUND)
    certainty = None
    if scores is not None:
        parts = zip(spans, kinds, strict=True)
        certainty = np.array([scores[start:end, kind].mean() for (start, end), kind in parts])
    return mean_ap.instances(np.full(len(kinds), number), spans, kinds, certainty)


def joined(parts: list[Instances]) -> Instances:
    """The instances of several videos."""
    return Instances(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def salads(source: Path, out: Path) -> None:
    """The table of 50Salads."""
    features = source / "salads50_mid_svm.npz"
    script = str(ROOT / "scripts" / "prepare_detection.py")
    flags = [script, "framewise", f"--source={features.resolve()}", f"--out={out.resolve()}"]
    run(flags, out / "prepare.log")
    rows: dict[str, list[dict[str, float]]] = {
        "SVM scores, frame by frame": [framewise(features, fold) for fold in FOLDS],
        "ED-TCN scores, frame by frame": [
            framewise(source / "salads50_mid_edtcn.npz", fold) for fold in FOLDS
        ],
        "ActionFormer head on the SVM scores": [],
    }
    for fold in FOLDS:
        given = [
            f"--config.data.annotations={out.resolve() / f'split{fold}.json'}",
            f"--config.data.features={out.resolve() / 'features'}",
        ]
        results = trained("salads", out.resolve() / f"fold{fold}", given)
        rows["ActionFormer head on the SVM scores"].append(results["scores"])
        scores = results["scores"]
        said = " ".join(f"{name} {100 * scores[name]:.1f}" for name in COLUMNS)
        print(f"fold {fold}: {said} ({results['wall_s']:.0f} s)", file=sys.stderr, flush=True)
    print("| 50Salads, mean of five folds | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    for title, folds in rows.items():
        means = [np.mean([scores[name] for scores in folds]) for name in COLUMNS]
        print(f"| {title} | " + " | ".join(f"{100 * mean:.1f}" for mean in means) + " |")


# -------------------------------------------------------------------------------------- composed


def composed(source: Path | None, out: Path) -> None:
    """The table of composed videos; without a source, of drawn ones."""
    job = "composed" if source else "drawn"
    videos, script = out.resolve() / "set", str(ROOT / "scripts" / "prepare_detection.py")
    given = [f"--source={source.resolve()}"] if source else []
    run([script, job, *given, f"--out={videos}"], out / "prepare.log")
    given = [
        f"--config.data.annotations={videos / 'annotations.json'}",
        f"--config.data.videos={videos / 'videos'}",
    ]
    head = ""
    for mode, title in MODES.items():
        variant = job + mode
        results = trained(variant, out.resolve() / variant, given)
        lines = (out / variant / "metrics.jsonl").read_text().splitlines()
        history = [row for row in map(json.loads, lines) if row["split"] == "val"]
        if not head:
            epochs = [f"{row['epoch']:g}" for row in history]
            head = "| mAP@0.3-0.7 after epoch | " + " | ".join(epochs) + " | @0.5 at the end |"
            print(head + "\n|---|" + "---|" * (len(epochs) + 1))
        cells = [f"{100 * row['mAP']:.1f}" for row in history]
        last = f"{100 * history[-1]['mAP@0.5']:.1f}"
        print(f"| {title} | " + " | ".join([*cells, last]) + " |", flush=True)
        print(f"{variant}: {results['wall_s']:.0f} s", file=sys.stderr)


def main() -> int:
    """Trains what is missing and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=("salads", "composed", "drawn"))
    parser.add_argument("--source", type=Path, help="folder of the data, but for drawn")
    parser.add_argument("--out", type=Path, required=True, help="folder of the work dirs")
    options = parser.parse_args()
    if (options.source is None) != (options.job == "drawn"):
        parser.error("--source is for salads and composed, which need it")
    options.out.mkdir(parents=True, exist_ok=True)
    (salads if options.job == "salads" else composed)(options.source, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
