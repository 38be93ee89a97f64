"""The real command in a process of its own, for tests."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
TOY = f"--config={TESTS / 'toy' / 'recipe.py'}"
TINY = f"--config={ROOT / 'configs' / 'x3d.py'}:tiny"
# The smallest recognisers that go through all of the code: one block a stage, two RGB frames.
ONE_STREAM = (
    TINY,
    "--config.model.streams=rgb",
    "--config.model.coarse=()",
    "--config.model.rgb.blocks=(1,)",
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The line of a mistake; fails unless there is exactly one, at the end, and no trace."""
        assert "Traceback" not in self.err, self.err
        assert self.err.rstrip().endswith(self.only_error), self.err
        return self.only_error

    @property
    def only_error(self) -> str:
        """As `error`, but threads and processes of libraries may have said more around it."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


LIMITED = """
import os, resource, sys
largest = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def run(
    *flags: str, cache: bool = True, largest: int = 0, limit: int = 300, env: dict | None = None
) -> Ended:
    """`python -m jaxact.main` with these flags, from the repository root.

    `cache` False neither reads nor keeps compiled programs; with `largest` no file can grow beyond
    so many bytes (a write then fails as on a full disk); `limit` seconds are allowed.
    """
    full = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}"}
    full.setdefault("JAXACT_CACHE", str(ROOT / "build" / "cache"))
    if not cache:
        full["JAXACT_CACHE"] = "off"
    before = ("-c", LIMITED, str(largest)) if largest else ()
    ended = subprocess.run(
        [sys.executable, *before, "-m", "jaxact.main", *flags],
        cwd=ROOT,
        env={**full, **(env or {})},
        capture_output=True,
        text=True,
        timeout=limit,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


FORKING = """
import json, os, sys, traceback
from jaxact import main
from jaxact.modes import bench, check, evaluate, export, predict
from jaxact.tasks.action import task
from jaxact.train import loop
from toy import blobs
for line in sys.stdin:
    flags, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 1
        try:
            sys.argv = ["jaxact.main", *flags]  # the parser of the config looks here
            code = main.main(sys.argv)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Runs the command's `main` in fresh forks of a process that has imported everything.

    For mistakes that are answered at once: an import of everything costs more than they do.
    """

    def __init__(self, folder: pathlib.Path):
        self.out, self.err = folder / "out", folder / "err"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", FORKING],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}", "JAXACT_CACHE": "off"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags: str) -> Ended:
        """As the function `run`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([flags, str(self.out), str(self.err)]) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return Ended(code, self.out.read_text(), self.err.read_text())

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


def trained(*flags: str, **options) -> Ended:
    """As `run`, and it must succeed."""
    ended = run(*flags, **options)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err, ended.err
    return ended


def data(folder: pathlib.Path) -> tuple[str, str]:
    """The flags that name a generated set."""
    return (
        f"--config.data.annotations={folder / 'annotations.pkl'}",
        f"--config.data.videos={folder / 'clips'}",
    )


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps(workdir: pathlib.Path) -> list[int]:
    """The finished checkpoints of a work dir."""
    folders = (workdir / "checkpoints").iterdir()
    return sorted(int(folder.name) for folder in folders if folder.name.isdigit())


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder and its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
