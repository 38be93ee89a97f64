"""`scripts/prepare_shards.py` on Beam's direct runner; the parts without Beam: tests/data."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command import ROOT
from PIL import Image

from jaxact.data import shards
from jaxact.packing import writer
from jaxact.packing.storage import Folder

SCRIPT = ROOT / "scripts" / "prepare_shards.py"
BEAM = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(not BEAM, reason="Apache Beam is not installed (extra [beam])")
INSIDE = ("--", "--runner=FnApiRunner", "--direct_running_mode=in_memory")  # quicker than processes


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(*arguments):
    """(exit code, standard output, standard error)."""
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def script():
    spec = importlib.util.spec_from_file_location("prepare_shards", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "source" / f"{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    return tmp_path / "source"


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def alone(source, out, count, **fields):
    """The same set without Beam."""
    options = writer.Options(shards=count, **fields)
    entries = writer.listing(Folder(source))
    writer.begin(Folder(out), entries, options)
    for number, members in enumerate(writer.assigned(entries, count)):
        writer.write_shard(Folder(source), Folder(out), number, members, options)
    writer.finish(Folder(out), entries, options)
    return contents(out)


@pytest.mark.parametrize(
    "flags, match",
    [
        (("--shards=0",), "--shards=0; allowed: 1 or more"),
        (("--short_side=-1",), "--short_side=-1; allowed: 0 or more"),
    ],
)
def test_mistakes_without_beam(source, tmp_path, flags, match):
    code, _, err = run("--source", source, "--out", tmp_path / "set", *flags)
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and match in err


@pytest.mark.skipif(BEAM, reason="Apache Beam is installed")
def test_without_beam_it_says_what_to_install(source, tmp_path):
    code, _, err = run("--source", source, "--out", tmp_path / "set")
    assert code == 2 and err.startswith("error: preparing shards needs Apache Beam: pip install")


def test_the_script_needs_no_jax():
    """So that Beam may have an environment of its own."""
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); sys.exit('jax' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )


@needs_beam
def test_beam_writes_what_one_process_would(source, tmp_path):
    code, out, err = run("--source", source, "--out", tmp_path / "set", "--shards=3", *INSIDE)
    assert code == 0, err
    assert "12 records" in out and "records 12, written 3" in out
    assert contents(tmp_path / "set") == alone(source, tmp_path / "other", 3)
    path = f"{shards.PREFIX}{tmp_path / 'set'}/1/4.png"
    assert shards.read(path) == (source / "1" / "4.png").read_bytes()
    code, out, err = run("--source", source, "--out", tmp_path / "set", "--shards=3", *INSIDE)
    assert code == 0 and "kept 3" in out and "written" not in out


@needs_beam
def test_several_processes_and_an_interruption(source, tmp_path):
    """The group is killed after its first shard; the same command goes on."""
    large = np.random.default_rng(1).integers(0, 256, (700, 700, 3), np.uint8)
    for number in range(40):
        Image.fromarray(large).save(source / f"large{number}.png", compress_level=1)
    out = tmp_path / "set"
    command = ("--source", source, "--out", out, "--shards=8", "--", "--runner=FnApiRunner")
    command += ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    process = start(*command, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list(out.glob("media-*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = len(list(out.glob("media-*.json")))
    assert not (out / shards.MANIFEST).exists()
    code, said, err = run(*command)
    assert code == 0, err
    counted = dict(part.rsplit(" ", 1) for part in said.splitlines()[0].split(", "))
    assert int(counted["kept"]) >= finished and not list(out.glob(".part*"))
    assert contents(out) == alone(source, tmp_path / "other", 8)


@needs_beam
def test_broken_media_and_annotations(source, tmp_path):
    (source / "0" / "bad.png").write_bytes(b"x")
    code, _, err = run("--source", source, "--out", tmp_path / "set", "--shards=2", *INSIDE)
    assert code == 2 and "error: 1 broken media" in err and "0/bad.png: " in err
    skip = ("--source", source, "--out", tmp_path / "set", "--shards=2", "--broken=skip", *INSIDE)
    code, out, err = run(*skip)
    assert code == 0, err
    assert "left out as broken: 0/bad.png: " in out and "12 records" in out and "broken 1" in out
    listed = tmp_path / "list.csv"
    listed.write_text("file,label\n1/1.png,a\n2/2.png,b\n")
    few = ("--source", source, "--out", tmp_path / "few", "--annotations", listed, *INSIDE)
    code, out, err = run(*few)
    assert code == 0 and "2 records" in out, err
    listed.write_text("file,label\n1/1.png,a\n2/none.png,b\n")
    code, _, err = run(*few)
    assert code == 2 and "names 1 media" in err and "'2/none.png'" in err
    code, _, err = run("--source", source, "--out", source / "set", *INSIDE)
    assert code == 2 and "lies in --source" in err


@needs_beam
@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_the_folder_that_beams_file_systems_reach(source, tmp_path):
    """What a bucket would see, on a local path."""
    module = script()
    here, out = module.Remote(str(source)), module.Remote(str(tmp_path / "set"))
    entries = writer.listing(here)
    assert entries == writer.listing(Folder(source))
    options = writer.Options(shards=2)
    writer.begin(out, entries, options)
    for number, members in enumerate(writer.assigned(entries, 2)):
        writer.write_shard(here, out, number, members, options)
    manifest = writer.finish(out, entries, options)
    assert contents(tmp_path / "set") == alone(source, tmp_path / "other", 2)
    done = writer.write_shard(here, out, 0, writer.assigned(entries, 2)[0], options)
    assert "kept" in done
    (tmp_path / "set" / manifest["shards"][0]["file"]).unlink()
    done = writer.write_shard(here, out, 0, writer.assigned(entries, 2)[0], options)
    assert "written" in done
    assert contents(tmp_path / "set") == contents(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        here.read("none.png")
