"""The real command in several processes of one machine, for tests."""

import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import command

LIMIT = 5  # s without a sign of life


@dataclasses.dataclass
class Party:
    """Running processes; `logs` hold what each said."""

    processes: list[subprocess.Popen]
    logs: list[pathlib.Path]

    def says(self, index: int) -> str:
        """What a process has said so far."""
        return self.logs[index].read_text()

    def until(self, true: Callable[[], bool], limit: float = 120) -> None:
        """Waits for something to become true while all processes run."""
        deadline = time.monotonic() + limit
        while not true():
            ended = [p.args[-1] for p in self.processes if p.poll() is not None]
            assert not ended, f"ended too early: {ended}\n{self.says(0)}"
            assert time.monotonic() < deadline, self.says(0)
            time.sleep(0.05)

    def worker(self, index: int) -> int:
        """The number of the process that trains; the started one only keeps it."""
        return int(re.search(rf"host {index} of .* process (\d+)", self.says(index))[1])

    def codes(self, limit: float = 200) -> list[int]:
        """Exit codes, once all have ended."""
        try:
            return [process.wait(limit) for process in self.processes]
        except subprocess.TimeoutExpired:
            self.end()
            raise

    def end(self) -> None:
        """Kills what still runs."""
        for index, process in enumerate(self.processes):
            if process.poll() is None:
                if "process" in self.says(index):
                    os.kill(self.worker(index), signal.SIGKILL)
                process.kill()
                process.wait()


def port() -> int:
    """One that is free now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def flags(count: int, index: int, coordinator: str) -> tuple[str, ...]:
    """What tells a process of the others."""
    return (
        "--config.mesh.hosts=given",
        f"--config.mesh.coordinator={coordinator}",
        f"--config.mesh.processes={count}",
        f"--config.mesh.process={index}",
        f"--config.mesh.timeout={LIMIT}",
    )


def slurm(count: int, index: int) -> dict[str, str]:
    """What Slurm tells a process of the others; JAX makes the port of the job's number."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": "0",
    }


def start(
    count: int,
    workdir: pathlib.Path,
    *more: str,
    only: tuple[int, ...] = (),
    auto: bool = False,
    **env: str,
) -> Party:
    """`python -m jaxact.main` on the toy system in `count` processes, or `only` some of them.

    With `auto` they find each other by the environment.
    """
    coordinator = f"localhost:{port()}"
    full = {
        **os.environ,
        "PYTHONPATH": f"{command.TESTS}{os.pathsep}{command.ROOT}",
        "JAX_PLATFORMS": "cpu",
        **env,
    }
    full.setdefault("JAXACT_CACHE", str(command.ROOT / "build" / "cache"))
    party = Party([], [])
    workdir.mkdir(parents=True, exist_ok=True)
    for index in only or range(count):
        log = workdir / f"{index}.log"
        party.logs.append(log)
        mine = (*flags(count, index, coordinator), f"--workdir={workdir / 'run'}", *more)
        if auto:
            full |= slurm(count, index)
            mine = ("--config.mesh.hosts=auto", *mine[4:])
        with log.open("w") as file:
            party.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "jaxact.main", command.TOY, *mine],
                    cwd=command.ROOT,
                    env=full,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return party


def trained(
    count: int, workdir: pathlib.Path, *more: str, auto: bool = False, **env: str
) -> pathlib.Path:
    """A training on so many hosts, to its end; returns the work dir."""
    party = start(count, workdir, *more, auto=auto, **env)
    codes = party.codes()
    assert codes == [0] * count, "\n".join(party.says(k)[-3000:] for k in range(count))
    return workdir / "run"
