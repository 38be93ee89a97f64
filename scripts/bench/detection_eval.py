"""Times detection scoring and suppression, and prints JSON.

    python scripts/bench/detection_eval.py [--videos 4926] [--nms 7500]

Scoring: random detections, 100 a video, on as many videos as ActivityNet 1.3's validation set has,
200 classes, ten tIoUs. With pandas installed, a row-by-row evaluator (one loop over the rows of
each class, as the public toolkits do it) scores the same, on every `--share`-th video; both must
agree. Suppression: gaussian, 20 classes, NumPy on the host beside the same under jit on the default
device, 2,000 picks.
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.tasks.detection import mean_ap, nms
from jaxact.tasks.detection.config import Nms
from jaxact.tasks.detection.mean_ap import ACTIVITYNET, Instances

CLASSES = 200


def generated(videos: int, each: int = 100) -> tuple[Instances, Instances]:
    """Ground truth, 1 to 3 a video of one class, and detections around it and elsewhere."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(videos), rng.integers(1, 4, videos))
    label = rng.integers(0, CLASSES, videos)
    start = rng.uniform(0, 80, len(owner))
    spans = np.stack([start, start + rng.gamma(2, 15, len(owner))], 1)
    truth = mean_ap.instances(owner, spans, label[owner])
    pick = rng.integers(0, len(owner), videos * each)
    near = np.sort(spans[pick] + rng.normal(0, 10, (len(pick), 2)), 1)
    guess = np.where(rng.random(len(pick)) < 0.8, label[owner[pick]], rng.integers(0, CLASSES))
    return truth, mean_ap.instances(owner[pick], near, guess, rng.random(len(pick)))


def row_by_row(truth: Instances, detections: Instances) -> np.ndarray:
    """mAP at each tIoU by a loop over the rows of data frames."""
    import pandas

    def frame(rows: Instances) -> Any:
        return pandas.DataFrame(
            {
                "video": rows.video,
                "start": rows.segment[:, 0],
                "end": rows.segment[:, 1],
                "label": rows.label,
                "score": rows.score,
            }
        )

    tious = ACTIVITYNET.tious
    truths, rows = frame(truth), frame(detections)
    scores = []
    for label, own in truths.groupby("label"):
        mine = rows[rows["label"] == label]
        mine = mine.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)
        own = own.reset_index()
        taken = np.zeros((len(tious), len(own)), bool)
        hits = np.zeros((len(tious), len(mine)), bool)
        videos = own.groupby("video")
        for index, row in mine.iterrows():
            if row["video"] not in videos.groups:
                continue
            rivals = videos.get_group(row["video"])
            overlap = mean_ap.iou(
                np.array([[row["start"], row["end"]]]), rivals[["start", "end"]].to_numpy()
            )
            order = np.argsort(-overlap, kind="stable")
            for level, tiou in enumerate(tious):
                for place in order:
                    if overlap[place] < tiou:
                        break
                    if not taken[level, rivals.index[place]]:
                        taken[level, rivals.index[place]] = hits[level, index] = True
                        break
        scores.append(
            mean_ap.average_precision(hits, len(own)) if len(mine) else np.zeros(len(tious))
        )
    return np.mean(scores, axis=0)


def scoring(videos: int, share: int) -> dict[str, Any]:
    """Seconds of our evaluator on all videos, and of both on a part of them."""
    truth, detections = generated(videos)
    start = time.perf_counter()
    mean_ap.evaluate(truth, detections, ACTIVITYNET, CLASSES)
    measured: dict[str, Any] = {
        "videos": videos,
        "ground_truths": len(truth.video),
        "detections": len(detections.video),
        "seconds": round(time.perf_counter() - start, 3),
    }
    part = [rows.at(rows.video % share == 0) for rows in (truth, detections)]
    start = time.perf_counter()
    ours = mean_ap.evaluate(*part, ACTIVITYNET, CLASSES)
    spent = time.perf_counter() - start
    try:
        start = time.perf_counter()
        means = row_by_row(*part)
    except ImportError:
        return {**measured, "row_by_row": "pandas is not installed"}
    theirs = time.perf_counter() - start
    assert np.allclose(means, ours.means, atol=1e-12), "the two evaluators disagree"
    return {
        **measured,
        "part": {
            "detections": len(part[1].video),
            "seconds": round(spent, 3),
            "row_by_row_seconds": round(theirs, 2),
            "speedup": round(theirs / spent),
            "largest_difference": float(np.abs(means - ours.means).max()),
        },
    }


def picks_under_jit(segment: Any, score: Any, label: Any, sigma: float, most: int) -> Any:
    """Scores f32[most] of the picks: each step takes the best and lets the others decay."""

    def step(left: Any, _: Any) -> Any:
        best = jnp.argmax(left)
        score = left[best]
        inner = jnp.minimum(segment[:, 1], segment[best, 1])
        inner = jnp.maximum(inner - jnp.maximum(segment[:, 0], segment[best, 0]), 0)
        length = segment[:, 1] - segment[:, 0] + nms.LENGTH
        overlap = jnp.where(label == label[best], inner / (length + length[best] - inner), 0)
        return (left * jnp.exp(-jnp.square(overlap) / sigma)).at[best].set(-1.0), score

    return jax.lax.scan(step, score, length=most)[1]


def suppression(rows: int, most: int = 2000, repeats: int = 3) -> dict[str, Any]:
    """Milliseconds for one video's detections, the best of a few runs."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 2000, rows)
    segment = np.stack([start, start + rng.gamma(2, 15, rows)], 1).astype(np.float32)
    score = (rng.permutation(rows) / rows).astype(np.float32)
    label = rng.integers(0, 20, rows)
    program = jax.jit(picks_under_jit, static_argnames=("sigma", "most"))
    given = [jnp.asarray(x) for x in (segment, score, label)]
    jitted = np.asarray(program(*given, sigma=0.7, most=most))  # compiles
    times: dict[str, list[float]] = {"numpy": [], "jit": []}
    for _ in range(repeats):
        begin = time.perf_counter()
        kept = nms.suppress(segment, score, label, Nms(sigma=0.7, most=most))
        times["numpy"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        jax.block_until_ready(program(*given, sigma=0.7, most=most))
        times["jit"].append(time.perf_counter() - begin)
    assert np.allclose(kept.score, jitted[: len(kept.score)], atol=1e-5), "the two disagree"
    return {
        "detections": rows,
        "picks": most,
        "device": jax.devices()[0].platform,
        **{f"{name}_ms": round(1000 * min(spent), 1) for name, spent in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=4926, help="videos to score")
    parser.add_argument("--share", type=int, default=25, help="every n-th for the row-by-row one")
    parser.add_argument("--nms", type=int, default=7500, help="detections of a video")
    options = parser.parse_args()
    measured = {
        "scoring": scoring(options.videos, options.share),
        "suppression": suppression(options.nms),
    }
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
