"""Several real processes: the numbers of one, and what happens when one of them goes away."""

import os
import pathlib
import shutil
import signal
import time

import command
import jax
import numpy as np
import party
import pytest

from jaxact.train.checkpoint import read_weights

TWENTY = ("--config.length=20 steps", "--config.save.log_every=1", "--config.mesh.min_size=1")
SLOWLY = (*TWENTY, "--config.data.pause=0.03")
FSDP = "--config.mesh.fsdp=2"


def weights(workdir, step=20):
    stored = read_weights(workdir / "checkpoints" / str(step))
    flat, _ = jax.tree_util.tree_flatten_with_path(stored)
    return {jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in flat}


def numbers(workdir, name):
    """A number of every row that has it, by step and split."""
    rows = command.rows(workdir)
    return {(row["step"], row["split"]): row[name] for row in rows if name in row}


def alike(one, other, exactly=False):
    """The same losses to 1e-6 and parameters to 1e-5, or the very same."""
    for name in ("loss", "nll"):
        a, b = numbers(one, name), numbers(other, name)
        assert a.keys() == b.keys()
        worst = max(abs(a[key] - b[key]) for key in a)
        assert worst <= (0 if exactly else 1e-6), (name, worst)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for path, array in a.items():
        np.testing.assert_allclose(b[path], array, rtol=0, atol=0 if exactly else 1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, as ever."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    command.trained(command.TOY, f"--workdir={folder}", *TWENTY, env={"JAX_PLATFORMS": "cpu"})
    assert len(numbers(folder, "loss")) == 20
    return folder


def counted_once(workdir):
    """Every example of the ragged split is in the predictions once, in order."""
    with np.load(workdir / "predictions" / "test.npz") as stored:
        assert stored["ids"].tolist() == [f"test{k}" for k in range(21)]
        assert len(stored["scores"]) == 21


@pytest.mark.parametrize("more", [(), (FSDP,)], ids=["data", "fsdp"])
def test_two_hosts_train_as_one(alone, tmp_path, more):
    workdir = party.trained(2, tmp_path, *TWENTY, *more, auto=bool(more))
    alike(alone, workdir)
    counted_once(workdir)
    with np.load(alone / "predictions" / "test.npz") as a:
        with np.load(workdir / "predictions" / "test.npz") as b:
            np.testing.assert_allclose(b["scores"], a["scores"], atol=1e-5)
    assert not [row for row in command.rows(workdir) if row["split"] == "train" and not row["loss"]]
    second = (tmp_path / "1.log").read_text()
    assert "step 20/20" in (tmp_path / "0.log").read_text() and "step" not in second


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), (FSDP,), ("--config.mesh.fsdp=4",)], ids=["data", "half", "fsdp"]
)
def test_four_hosts_train_as_one(alone, tmp_path, more):
    workdir = party.trained(4, tmp_path, *TWENTY, *more)
    alike(alone, workdir)
    counted_once(workdir)


def steps_done(workdir):
    path = workdir / "metrics.jsonl"
    return max((row["step"] for row in command.rows(workdir)), default=0) if path.exists() else 0


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A training whose second host was killed in the middle of a step."""
    folder = tmp_path_factory.mktemp("broken")
    running = party.start(2, folder, *SLOWLY)
    try:
        run = folder / "run"
        running.until(lambda: steps_done(run) >= 8 and 6 in command.steps(run))
        os.kill(running.worker(1), signal.SIGKILL)
        begin = time.monotonic()
        codes = running.codes(60)
        took = time.monotonic() - begin
    finally:
        running.end()
    return folder, codes, took, running.says(0)


def test_the_others_end_when_a_host_is_killed(broken):
    folder, codes, took, said = broken
    assert codes == [4, 137], said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith("error: host 1 of 2 ("), said
    assert f"{party.LIMIT} s (config.mesh.timeout)" in lines[0]
    assert took < 3 * party.LIMIT
    assert not (folder / "run" / "results.json").exists()


@pytest.mark.parametrize(
    "count",
    [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))],
    ids=["one", "two", "four"],
)
def test_a_broken_run_goes_on_with_any_number_of_hosts(alone, broken, tmp_path, count):
    shutil.copytree(broken[0] / "run", tmp_path / "run")
    if count == 1:
        flags = (command.TOY, f"--workdir={tmp_path / 'run'}", *TWENTY)
        said = command.trained(*flags, env={"JAX_PLATFORMS": "cpu"}).err
    else:
        party.trained(count, tmp_path, *TWENTY)
        said = (tmp_path / "0.log").read_text()
    assert "resumed from step 6" in said
    alike(alone, tmp_path / "run")


def gone(number):
    """Has a process ended, whether or not anybody has asked how?"""
    try:
        return pathlib.Path(f"/proc/{number}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except OSError:
        return True


def test_the_others_end_when_the_first_host_is_killed(tmp_path):
    running = party.start(2, tmp_path, *SLOWLY, "--config.length=100 epochs")
    try:
        running.until(lambda: steps_done(tmp_path / "run") >= 2)
        worker = running.worker(0)
        running.processes[0].kill()  # the parent; its child must not stay behind
        begin = time.monotonic()
        assert running.codes(60) == [-signal.SIGKILL, 4]
        assert time.monotonic() - begin < 3 * party.LIMIT
        assert gone(worker)
    finally:
        running.end()
    said = running.says(1)
    assert "error: host 0 " in said, said


def test_sigterm_on_any_host_saves_on_all(alone, tmp_path):
    """Stopped on two hosts that share the state, goes on on one."""
    running = party.start(2, tmp_path, *SLOWLY, FSDP)
    run = tmp_path / "run"
    try:
        running.until(lambda: steps_done(run) >= 3)
        worker = running.worker(1)
        for _ in range(3):  # Slurm signals each process of a step, and may do so again
            running.processes[1].send_signal(signal.SIGTERM)
            os.kill(worker, signal.SIGTERM)
            time.sleep(0.4)
        assert running.codes(60) == [143, 143], running.says(0)
    finally:
        running.end()
    stopped = command.steps(run)[-1]
    assert stopped < 20 and f"saved step {stopped} of 20" in running.says(0)
    command.trained(command.TOY, f"--workdir={run}", *TWENTY, env={"JAX_PLATFORMS": "cpu"})
    alike(alone, run)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), (FSDP,)], ids=["data", "fsdp"])
def test_the_same_hosts_go_on_bit_for_bit(tmp_path, more):
    """A run on two hosts, and one that was stopped in between."""
    whole = party.trained(2, tmp_path / "whole", *TWENTY, *more)
    running = party.start(2, tmp_path / "parts", *SLOWLY, *more)
    run = tmp_path / "parts" / "run"
    try:
        running.until(lambda: steps_done(run) >= 3)
        running.processes[0].send_signal(signal.SIGTERM)
        assert running.codes(60) == [143, 143], running.says(0)
    finally:
        running.end()
    party.trained(2, tmp_path / "parts", *TWENTY, *more)
    alike(whole, run, exactly=True)


@pytest.mark.parametrize("came", [0, 1])
def test_a_host_that_does_not_come_is_named(tmp_path, came):
    """Whether flags or the environment say how many there are."""
    flags = ("--config.mesh.start_timeout=2",)
    running = party.start(2, tmp_path, *flags, only=(came,), auto=bool(came))
    try:
        assert running.codes(60) == [4]
    finally:
        running.end()
    said = running.says(0)
    assert f"error: host {1 - came} of 2 (no sign of it in" in said, said
    assert "did not come within 2 s (config.mesh.start_timeout)" in said


def test_a_mistake_of_one_host_ends_all(tmp_path):
    """Only the second host reads the broken example; the first one says whose output to look at."""
    running = party.start(2, tmp_path, *TWENTY, "--config.data.broken=3")
    try:
        codes = running.codes(60)
    finally:
        running.end()
    assert codes == [2, 2], running.says(0)  # 4 would make a launcher try it again
    mistaken = ["error: blob 3 cannot be read" in running.says(k) for k in (0, 1)].index(True)
    told = running.says(1 - mistaken)
    assert f"error: host {mistaken} of 2 (" in told or mistaken == 0, told
    assert "ended with exit code 2; its own output says why\n" in told


@pytest.mark.slow
def test_sigterm_ends_an_evaluation(alone, tmp_path):
    """There is nothing to save, so nothing to wait for."""
    shutil.copytree(alone, tmp_path / "run")
    running = party.start(2, tmp_path, "--mode=eval", "--config.data.rest=2")
    try:
        running.until(lambda: "weights of" in running.says(0))
        begin = time.monotonic()
        for process in running.processes:
            process.send_signal(signal.SIGTERM)
        assert running.codes(60) == [143, 143], running.says(0)
        assert time.monotonic() - begin < 5
    finally:
        running.end()


# ---------------------------------------------------------------------- answered before they meet


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """The command in forks of one process that has imported everything."""
    running = command.Forks(tmp_path_factory.mktemp("forks"))
    yield running
    running.close()


@pytest.mark.parametrize("mode", ["predict", "check", "bench", "export"])
@pytest.mark.parametrize("where", ["given", "auto"])
def test_modes_for_one_host_say_so(forks, tmp_path, mode, where):
    flags = party.flags(2, 0, "localhost:1") if where == "given" else ("--config.mesh.hosts=auto",)
    ended = forks.run(command.TOY, *flags, f"--workdir={tmp_path}", f"--mode={mode}")
    assert ended.code == 2
    assert ended.error == (
        f"error: config.mesh.hosts='{where}' with --mode={mode}; allowed: one (only train and eval "
        "run on several hosts)"
    )
    assert list(tmp_path.iterdir()) == []


def test_hosts_that_nothing_names(forks, tmp_path):
    where = f"--workdir={tmp_path}"
    ended = forks.run(command.TOY, where, "--config.mesh.hosts=auto")
    assert ended.code == 2 and "config.mesh.hosts='auto'" in ended.only_error
    ended = forks.run(command.TOY, where, "--config.mesh.hosts=given")
    assert ended.code == 2 and "config.mesh.coordinator" in ended.error


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_work_dir_that_is_missing_needs_no_other_host(forks, mode):
    """Nobody is waited for, and nothing is written anywhere."""
    begin = time.monotonic()
    ended = forks.run(command.TOY, *party.flags(2, 0, "localhost:1"), f"--mode={mode}")
    assert ended.code == 2 and "--workdir is missing" in ended.error
    assert time.monotonic() - begin < 30
    assert not (command.ROOT / ".hosts").exists()


def test_a_work_dir_that_cannot_be(forks, tmp_path):
    (tmp_path / "file").write_text("")
    where = f"--workdir={tmp_path / 'file' / 'run'}"
    ended = forks.run(command.TOY, *party.flags(2, 0, "localhost:1"), where)
    assert ended.code == 2 and f"{where} cannot be made: Not a directory" in ended.only_error
