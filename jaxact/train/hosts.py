"""Several processes that run one program: joining, leaving together, noticing who is gone.

Everything rests on `jax.distributed`. Its coordinator, in process 0, also keeps a small table of
texts; each process counts up its own line there, and one whose line stands still is lost. Without
`config.mesh.hosts` nothing here does anything.
"""

import dataclasses
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from typing import Any

from jaxact.config import Mesh, UserError

LOST = 4  # exit code: another process is gone, or did not come
BEATS, NAMES = "jaxact/beat/", "jaxact/name/"
ENDED = "ended "  # what a line says, with the exit code, when its process stops before the others
ROLL = ".hosts"  # folder in the work dir: who came, while some are waited for
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
    heard: float = 0.0  # s, when the coordinator last answered
    barriers: int = 0
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
    roll = workdir / ROLL
    if options.hosts == "given":
        roll.mkdir(parents=True, exist_ok=True)
        (roll / str(options.process)).write_text(socket.gethostname())
    reading, _party.joined = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        return
    os.close(_party.joined)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGABRT:
        if os.read(reading, 1):
            place = f" ({options.coordinator})" if options.coordinator else ""
            who = f"host 0{place}, which all talk to, or one that the lines above name,"
            speak(f"{who} is gone; {AGAIN}")
        else:
            limit = f"within {options.start_timeout} s (config.mesh.start_timeout)"
            speak(f"{_absent(options, roll, begun)} did not come {limit}; {AGAIN}")
        code = LOST
    os._exit(code if code >= 0 else 128 - code)


def _absent(options: Mesh, roll: pathlib.Path, begun: float) -> str:
    """Who has not written to the roll since about when this process began."""
    since = begun - options.start_timeout
    here = {path.name for path in roll.glob("*") if path.stat().st_mtime >= since}
    missing = [str(k) for k in range(options.processes) if str(k) not in here]
    if not missing:
        return f"host 0{f' ({options.coordinator})' if options.coordinator else ''} or another"
    return f"host {', '.join(missing)} of {options.processes} (no sign of it in {roll})"


def speak(text: str) -> None:
    """The one line of an error, from whichever host."""
    print(f"error: {text}", file=sys.stderr, flush=True)


def begin(options: Mesh) -> None:
    """Joins the other processes, before any device is used.

    Raises:
      UserError: the environment names no hosts; a process did not come in time.
    """
    if options.hosts == "one":
        return
    import jax
    from jax._src import distributed

    given: dict[str, Any] = {}
    if options.hosts == "given":
        given = {
            "coordinator_address": options.coordinator,
            "num_processes": options.processes,
            "process_id": options.process,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=options.start_timeout,
            # The watch below is quicker and says who it was.
            heartbeat_timeout_seconds=3 * options.timeout,
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            f"config.mesh.hosts={options.hosts!r}, but nothing here says which hosts there are "
            f"({str(error).splitlines()[0]}); allowed: one, or given with coordinator, processes "
            "and process"
        ) from None
    os.write(_party.joined, b"j")
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
                    _lost(index, f"{line}; its own output says why")
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


def _lost(index: int, how: str) -> None:
    """Says who is gone and ends this process; a collective that waits for them never would."""
    if _party.over.is_set():
        return
    try:
        name = "" if index == 0 else _party.client.key_value_try_get(f"{NAMES}{index}")
    except RuntimeError as error:
        name = f"name unknown: {str(error).splitlines()[0][:80]}"
    speak(f"host {index} of {_party.count}{f' ({name})' if name else ''} {how}; {AGAIN}")
    _say_end(LOST)
    os._exit(LOST)


def _say_end(code: int) -> None:
    text = f"{ENDED}with exit code {code}"
    try:
        _party.client.key_value_set(f"{BEATS}{_party.index}", text, allow_overwrite=True)
    except RuntimeError as error:
        print(f"host 0 does not hear of it: {str(error).splitlines()[0]}", file=sys.stderr)


def blame(error: BaseException) -> None:
    """After an error that may be the loss of another: waits until the watch would have seen it.

    If it is, this process ends here, with the message that names the lost one.
    """
    if several() and not isinstance(error, KeyboardInterrupt | SystemExit):
        _party.over.wait(_party.limit + 3 * _party.beat)


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
    # The coordinator stays a little longer, for the others to read that in its table.
    wait = 3 * _party.beat + 1
    time.sleep(2 * wait if first() else wait)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def meet() -> None:
    """Waits here for all others. Files that process 0 has written are there for all after it."""
    if several():
        _party.barriers += 1
        _party.client.wait_at_barrier(f"jaxact/{_party.barriers}", 1000 * DAY)


def stopping(step: int) -> bool:
    """Has a signal reached any host, and is this the step after which all stop?

    The coordinator finds a step that none has passed; until a signal comes, asking costs nothing.
    All must ask after every step.
    """
    from jax.experimental import multihost_utils

    return several() and multihost_utils.reached_preemption_sync_point(step)
