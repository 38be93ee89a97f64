"""Several processes that run one program: joining, leaving together, noticing who is gone.

Everything rests on `jax.distributed`. Its coordinator, in process 0, also keeps a small table of
texts; each process counts up its own line there, and one whose line stands still is lost. Without
`config.mesh.hosts` nothing here does anything.
"""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxact.config import Mesh, UserError

LOST = 4  # exit code: another process is gone, or did not come
FINAL = (2, 3)  # exit codes that the same command would end with again; the others pass them on
BEATS, NAMES = "jaxact/beat/", "jaxact/name/"
ENDED = "ended "  # what a line says, with the exit code, when its process stops before the others
ROLL = ".hosts"  # folder in the work dir: who came, while some are waited for
COORDINATOR, DEVICES = "coordinator_address", "local_device_ids"  # as JAX calls them
AGAIN = "checkpoints stay as they are: start the same command on all hosts again"
DAY = 86_400  # s; how long waits last whose ends the watch decides


@dataclasses.dataclass
class Party:
    """The processes of this run, as this one sees them."""

    index: int = 0
    count: int = 1
    limit: float = 0.0  # s without a sign of life
    beat: float = 0.0  # s from sign to sign
    client: Any = None
    over: threading.Event = dataclasses.field(default_factory=threading.Event)
    line: Any = dataclasses.field(default_factory=threading.Lock)  # of who writes the own line
    heard: float = 0.0  # s, when the coordinator last answered
    barriers: int = 0
    asked: int = 0  # answers of the first process so far
    joined: int = -1  # pipe to the keeper


_party = Party()


def first() -> bool:
    """Is this the process that writes and speaks?"""
    return _party.index == 0


def several() -> bool:
    """Are there other processes?"""
    return _party.count > 1


def keep(options: Mesh, workdir: pathlib.Path) -> None:
    """Goes on in a child; the parent passes SIGTERM on and turns JAX's aborts into an exit code.

    Where the coordinator is gone, or somebody does not come, JAX's runtime aborts its process at
    once: no code of ours runs in it any more. Call before any thread is started.
    """
    if options.hosts == "one":
        return
    begun = time.time()
    reading, _party.joined = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        return
    os.close(_party.joined)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told, _, joined = os.read(reading, 4096).decode().partition("\n")
    if code == -signal.SIGABRT and told:
        where = json.loads(told)
        if joined:
            who = f"host 0 ({where[COORDINATOR]}), which all talk to, or one that the lines above"
            speak(f"{who} name, is gone; {AGAIN}")
        else:
            limit = f"within {options.start_timeout} s (config.mesh.start_timeout)"
            absent = _absent(where, workdir / ROLL, begun - options.start_timeout)
            speak(f"{absent} did not come {limit}; {AGAIN}")
        code = LOST
    os._exit(code if code >= 0 else 128 - code)


def _absent(where: dict[str, Any], roll: pathlib.Path, since: float) -> str:
    """Who has not written to the roll since then (s)."""
    here = {path.name for path in roll.glob("*") if path.stat().st_mtime >= since}
    missing = [str(k) for k in range(where["num_processes"]) if str(k) not in here]
    if not missing:
        return f"host 0 ({where[COORDINATOR]}) or another"
    return f"host {', '.join(missing)} of {where['num_processes']} (no sign of it in {roll})"


def speak(text: str) -> None:
    """The one line of an error, from whichever host."""
    print(f"error: {text}", file=sys.stderr, flush=True)


def place(options: Mesh) -> dict[str, Any]:
    """Where this process stands: address of the coordinator, number of processes, own number.

    Of `auto` also the device it may use, where Slurm or Open MPI counts processes of a node.

    Raises:
      UserError: the environment names no hosts.
      SystemExit: it does, but they cannot be found (code 4).
    """
    if options.hosts == "given":
        found: Any = (options.coordinator, options.processes, options.process, None)
    else:
        from jax._src.clusters import ClusterEnv

        known = os.environ.get("JAX_COORDINATOR_ADDRESS")
        try:
            found = ClusterEnv.auto_detect_unset_distributed_params(
                known, None, None, None, None, options.start_timeout
            )
        except RuntimeError as error:
            speak(f"config.mesh.hosts='auto': {str(error).splitlines()[0]}; {AGAIN}")
            sys.exit(LOST)
        if None in found[:3]:
            raise UserError(
                "config.mesh.hosts='auto', but nothing here says which hosts there are; allowed: "
                "one, given with coordinator, processes and process, or auto under Slurm, Open "
                "MPI, a TPU slice, or Kubernetes with the package kubernetes installed"
            )
        if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
            found = (*found[:3], None)  # JAX reads it by itself
    return dict(zip((COORDINATOR, "num_processes", "process_id", DEVICES), found, strict=True))


def begin(options: Mesh, workdir: pathlib.Path, saves: bool) -> None:
    """Joins the other processes, before any device is used.

    With `saves` SIGTERM is kept until `stopping` is asked; without it ends the process at once.

    Raises:
      UserError: the environment names no hosts; the work dir cannot be made.
      SystemExit: see `place`.
    """
    if options.hosts == "one":
        return
    import jax
    from jax._src import distributed

    mine, roll = place(options), workdir / ROLL
    try:
        roll.mkdir(parents=True, exist_ok=True)
        (roll / str(mine["process_id"])).write_text(socket.gethostname())
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from None
    os.write(_party.joined, json.dumps(mine).encode() + b"\n")
    jax.config.update("jax_enable_preemption_service", saves)
    jax.distributed.initialize(
        **mine,
        cluster_detection_method="deactivate",
        initialization_timeout=options.start_timeout,
        # The watch below is quicker and says who it was.
        heartbeat_timeout_seconds=3 * options.timeout,
    )
    os.write(_party.joined, b"joined")
    found = distributed.global_state
    _party.index, _party.count, _party.client = found.process_id, found.num_processes, found.client
    _party.limit = float(options.timeout)
    _party.beat = min(max(_party.limit / 10, 0.2), 2.0)
    _party.client.key_value_set(f"{NAMES}{_party.index}", socket.gethostname())
    _party.heard = time.monotonic()
    for task in (_watch, _listen):
        threading.Thread(target=task, args=(os.getppid(),), daemon=True).start()
    print(
        f"host {_party.index} of {_party.count}: {socket.gethostname()}, process {os.getpid()}",
        file=sys.stderr,
        flush=True,
    )


def _watch(parent: int) -> None:
    """Says that this process lives, and looks whether all others do."""
    client, seen = _party.client, dict.fromkeys(range(_party.count), ("", time.monotonic()))
    number = 0
    while not _party.over.wait(_party.beat):
        number += 1
        try:
            with _party.line:
                if _party.over.is_set():
                    return
                client.key_value_set(f"{BEATS}{_party.index}", str(number), allow_overwrite=True)
            lines = dict(client.key_value_dir_get(BEATS))
        except RuntimeError as error:
            _lost(0, f"does not answer ({str(error).splitlines()[0][:120]})")
        _party.heard = now = time.monotonic()
        for index in set(seen) - {_party.index}:
            line = lines.get(f"{BEATS}{index}", "")
            if line != seen[index][0]:
                seen[index] = (line, now)
            if line.startswith(ENDED):
                # Time for an error of our own: the same mistake is often found on all hosts.
                if now - seen[index][1] > 2 * _party.beat + 1:
                    code = int(line.rsplit(" ", 1)[1])
                    _lost(index, f"{line}; its own output says why", code)
            elif now - seen[index][1] > _party.limit:
                _lost(index, f"gave no sign of life for {_party.limit:g} s (config.mesh.timeout)")


def _listen(parent: int) -> None:
    """Ends this process where the coordinator has stopped answering, or the keeper has gone."""
    while not _party.over.wait(min(_party.beat, 1.0)):
        if os.getppid() != parent:
            os._exit(LOST)
        silent = time.monotonic() - _party.heard
        if silent > _party.limit + 2 * _party.beat:
            _lost(0, f"has not answered for {silent:.0f} s (config.mesh.timeout)")


def _lost(index: int, how: str, code: int = LOST) -> None:
    """Says who is gone and ends this process; a collective that waits for them never would.

    `code`: with which the other ended. A launcher looks at the first or the largest of all.
    """
    if _party.over.is_set():
        return
    try:
        name = "" if index == 0 else _party.client.key_value_try_get(f"{NAMES}{index}")
    except RuntimeError as error:
        name = f"name unknown: {str(error).splitlines()[0][:80]}"
    code, rest = (code, "") if code in FINAL else (LOST, f"; {AGAIN}")
    speak(f"host {index} of {_party.count}{f' ({name})' if name else ''} {how}{rest}")
    if index:  # to a host 0 that does not answer, speaking may take for ever
        _say_end(code, index)
    os._exit(code)


def _say_end(code: int, gone: int = 0) -> None:
    """The last line of this process. Host 0 stays until the others have read it in its table."""
    deadline = time.monotonic() + _party.limit
    waiting = {f"{BEATS}{k}" for k in range(_party.count)} - {f"{BEATS}{k}" for k in (0, gone)}
    try:
        with _party.line:
            _party.over.set()
            text = f"{ENDED}with exit code {code}"
            _party.client.key_value_set(f"{BEATS}{_party.index}", text, allow_overwrite=True)
        while first() and waiting and time.monotonic() < deadline:
            time.sleep(_party.beat / 2)
            lines = _party.client.key_value_dir_get(BEATS)
            waiting -= {key for key, line in lines if line.startswith(ENDED)}
    except RuntimeError as error:
        print(f"host 0 does not hear of it: {str(error).splitlines()[0]}", file=sys.stderr)


def blame(error: BaseException) -> None:
    """After an error that may be the loss of another: waits until the watch would have seen it.

    If it is, this process ends here, with the message that names the lost one.
    """
    if several() and not isinstance(error, KeyboardInterrupt | SystemExit):
        time.sleep(_party.limit + 3 * _party.beat)
        while _party.over.is_set():  # it has, and is about to end this process
            time.sleep(_party.beat)


def leave(code: int, together: bool) -> int:
    """The end of this process: with the others, or, after an error of its own, before them."""
    if not several():
        return code
    if together:
        import jax

        meet()
        _party.over.set()
        jax.distributed.shutdown()
        return code
    _say_end(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def meet() -> None:
    """Waits here for all others. Files that process 0 has written are there for all after it."""
    if several():
        _party.barriers += 1
        _party.client.wait_at_barrier(f"jaxact/{_party.barriers}", 1000 * DAY)


def agreed(find: Callable[[], Any]) -> Any:
    """What the first process finds (plain values), on all of them; all must call it.

    For what is looked up in a shared folder, whose listing may be some seconds old elsewhere.
    """
    if not several():
        return find()
    _party.asked += 1
    key = f"jaxact/said/{_party.asked}"
    if first():
        _party.client.key_value_set(key, json.dumps(find()))
    return json.loads(_party.client.blocking_key_value_get(key, 1000 * DAY))


def stopping(step: int) -> bool:
    """Has a signal reached any host, and is this the step after which all stop?

    The coordinator finds a step that none has passed; until a signal comes, asking costs nothing.
    All must ask after every step.
    """
    from jax.experimental import multihost_utils

    return several() and multihost_utils.reached_preemption_sync_point(step)
