"""Several processes that run one program: they join, leave together, and notice who is gone.

Everything rests on `jax.distributed`. Its coordinator, in process 0, also keeps a small table of
texts. Each process counts up its own line there (its heartbeat); one whose line stands still is
lost. With `config.mesh.hosts=one` nothing here does anything.
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
BEAT, NAME = "jaxact/beat/", "jaxact/name/"  # keys of the table, without the number of a process
ENDED = "ended "  # what a line says, with the exit code, when its process stops before the others
MEMBERS = ".hosts"  # folder in the work dir with a file of each process that came
COORDINATOR, DEVICES = "coordinator_address", "local_device_ids"  # as JAX calls them
AGAIN = "checkpoints stay as they are: start the same command on all hosts again"
DAY = 86_400  # s; for waits that the heartbeat ends


@dataclasses.dataclass
class Heartbeat:
    """This process among those of the run, and its signs of life."""

    index: int = 0
    count: int = 1
    limit: float = 0.0  # s without a sign of life after which a process is lost
    interval: float = 0.0  # s from sign to sign
    client: Any = None  # of the coordinator's table
    over: threading.Event = dataclasses.field(default_factory=threading.Event)
    lock: Any = dataclasses.field(default_factory=threading.Lock)  # of who writes the own line
    heard: float = 0.0  # s, when the coordinator last answered
    barriers: int = 0  # passed so far
    asked: int = 0  # answers of the first process so far
    pipe: int = -1  # to the parent process, which hears where this one stands


_heartbeat = Heartbeat()


def first() -> bool:
    """Is this the process that writes and speaks?"""
    return _heartbeat.index == 0


def several() -> bool:
    """Are there other processes?"""
    return _heartbeat.count > 1


def supervise(options: Mesh, workdir: pathlib.Path) -> None:
    """Goes on in a child; the parent passes SIGTERM on and turns JAX's aborts into an exit code.

    Where the coordinator is gone, or a process does not come, JAX's runtime aborts its process at
    once and no code of ours runs in it any more. Call before any thread is started.
    """
    if options.hosts == "one":
        return
    begun = time.time()
    reading, _heartbeat.pipe = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        return
    os.close(_heartbeat.pipe)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told, _, joined = os.read(reading, 4096).decode().partition("\n")
    if code == -signal.SIGABRT and told:
        where = json.loads(told)
        if joined:
            who = f"host 0 ({where[COORDINATOR]}), which all talk to, or one that the lines above"
            what = "name, is gone"
        else:
            who = _absent(where, workdir / MEMBERS, begun - options.start_timeout)
            what = f"did not come within {options.start_timeout} s (config.mesh.start_timeout)"
        speak(f"{who} {what}; {AGAIN}")
        code = LOST
    os._exit(code if code >= 0 else 128 - code)


def _absent(where: dict[str, Any], members: pathlib.Path, since: float) -> str:
    """The hosts that have not written to the folder of members since then (s)."""
    here = {path.name for path in members.glob("*") if path.stat().st_mtime >= since}
    missing = [str(k) for k in range(where["num_processes"]) if str(k) not in here]
    if not missing:
        return f"host 0 ({where[COORDINATOR]}) or another"
    return f"host {', '.join(missing)} of {where['num_processes']} (no sign of it in {members})"


def speak(text: str) -> None:
    """Prints the one line of an error, on any host."""
    print(f"error: {text}", file=sys.stderr, flush=True)


def place(options: Mesh) -> dict[str, Any]:
    """Address of the coordinator, number of processes and own number, as JAX calls them.

    With `auto` also the device it may use, where Slurm or Open MPI counts processes of a node.
    Raises UserError where the environment names no hosts; exits with code 4 where it does, but they
    cannot be asked.
    """
    names = (COORDINATOR, "num_processes", "process_id", DEVICES)
    if options.hosts == "given":
        values: Any = (options.coordinator, options.processes, options.process, None)
        return dict(zip(names, values, strict=True))
    from jax._src.clusters import ClusterEnv

    known = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        values = ClusterEnv.auto_detect_unset_distributed_params(
            known, None, None, None, None, options.start_timeout
        )
    except RuntimeError as error:
        speak(f"config.mesh.hosts='auto': {str(error).splitlines()[0]}; {AGAIN}")
        sys.exit(LOST)
    if None in values[:3]:
        raise UserError(
            "config.mesh.hosts='auto', but nothing here says which hosts there are; allowed: one, "
            "given with coordinator, processes and process, or auto under Slurm, Open MPI, a TPU "
            "slice, or Kubernetes with the package kubernetes installed"
        )
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        values = (*values[:3], None)  # JAX reads it by itself
    return dict(zip(names, values, strict=True))


def begin(options: Mesh, workdir: pathlib.Path, saves: bool) -> None:
    """Joins the other processes, before any device is used.

    With `saves`, SIGTERM waits until `stopping` is asked; without, it ends the process at once.
    Raises as `place`, and UserError where the work dir cannot be made.
    """
    if options.hosts == "one":
        return
    import jax
    from jax._src import distributed

    mine, members = place(options), workdir / MEMBERS
    try:
        members.mkdir(parents=True, exist_ok=True)
        (members / str(mine["process_id"])).write_text(socket.gethostname())
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from None
    os.write(_heartbeat.pipe, json.dumps(mine).encode() + b"\n")
    jax.config.update("jax_enable_preemption_service", saves)
    jax.distributed.initialize(
        **mine,
        cluster_detection_method="deactivate",
        initialization_timeout=options.start_timeout,
        # The heartbeat below is quicker and says who it was.
        heartbeat_timeout_seconds=3 * options.timeout,
    )
    os.write(_heartbeat.pipe, b"joined")
    joined = distributed.global_state
    _heartbeat.limit = float(options.timeout)
    _heartbeat.index, _heartbeat.count = joined.process_id, joined.num_processes
    _heartbeat.client = joined.client
    _heartbeat.interval = min(max(_heartbeat.limit / 10, 0.2), 2.0)
    _heartbeat.client.key_value_set(f"{NAME}{_heartbeat.index}", socket.gethostname())
    _heartbeat.heard = time.monotonic()
    threading.Thread(target=_watch, daemon=True).start()
    threading.Thread(target=_listen, args=(os.getppid(),), daemon=True).start()
    who = f"host {_heartbeat.index} of {_heartbeat.count}"
    print(f"{who}: {socket.gethostname()}, process {os.getpid()}", file=sys.stderr, flush=True)


def _watch() -> None:
    """Sends this process's sign of life, and looks whether all others send theirs."""
    client, seen = _heartbeat.client, dict.fromkeys(range(_heartbeat.count), ("", time.monotonic()))
    number = 0
    while not _heartbeat.over.wait(_heartbeat.interval):
        number += 1
        try:
            with _heartbeat.lock:
                if _heartbeat.over.is_set():
                    return
                client.key_value_set(f"{BEAT}{_heartbeat.index}", str(number), allow_overwrite=True)
            lines = dict(client.key_value_dir_get(BEAT))
        except RuntimeError as error:
            _lost(0, f"does not answer ({str(error).splitlines()[0][:120]})")
        _heartbeat.heard = now = time.monotonic()
        for index in set(seen) - {_heartbeat.index}:
            line = lines.get(f"{BEAT}{index}", "")
            if line != seen[index][0]:
                seen[index] = (line, now)
            if line.startswith(ENDED):
                # Time for an error of our own: the same mistake is often found on all hosts.
                if now - seen[index][1] > 2 * _heartbeat.interval + 1:
                    code = int(line.rsplit(" ", 1)[1])
                    _lost(index, f"{line}; its own output says why", code)
            elif now - seen[index][1] > _heartbeat.limit:
                silent = f"{_heartbeat.limit:g} s (config.mesh.timeout)"
                _lost(index, f"gave no sign of life for {silent}")


def _listen(parent: int) -> None:
    """Ends this process where the coordinator has stopped answering or the parent is gone."""
    while not _heartbeat.over.wait(min(_heartbeat.interval, 1.0)):
        if os.getppid() != parent:
            os._exit(LOST)
        silent = time.monotonic() - _heartbeat.heard
        if silent > _heartbeat.limit + 2 * _heartbeat.interval:
            _lost(0, f"has not answered for {silent:.0f} s (config.mesh.timeout)")


def _lost(index: int, how: str, code: int = LOST) -> None:
    """Says who is gone and ends this process; a collective that waits for it would not end.

    `code`: the other's exit code. A launcher looks at the first or the largest of all.
    """
    if _heartbeat.over.is_set():
        return
    try:
        name = "" if index == 0 else _heartbeat.client.key_value_try_get(f"{NAME}{index}")
    except RuntimeError as error:
        name = f"name unknown: {str(error).splitlines()[0][:80]}"
    code, rest = (code, "") if code in FINAL else (LOST, f"; {AGAIN}")
    speak(f"host {index} of {_heartbeat.count}{f' ({name})' if name else ''} {how}{rest}")
    if index:  # a host 0 that does not answer may keep us waiting for ever
        _say_end(code, index)
    os._exit(code)


def _say_end(code: int, gone: int = 0) -> None:
    """Writes the last line of this process. Host 0 stays until the others have read it."""
    deadline = time.monotonic() + _heartbeat.limit
    waiting = {f"{BEAT}{k}" for k in range(_heartbeat.count) if k not in (0, gone)}
    try:
        with _heartbeat.lock:
            _heartbeat.over.set()
            text = f"{ENDED}with exit code {code}"
            _heartbeat.client.key_value_set(f"{BEAT}{_heartbeat.index}", text, allow_overwrite=True)
        while first() and waiting and time.monotonic() < deadline:
            time.sleep(_heartbeat.interval / 2)
            lines = _heartbeat.client.key_value_dir_get(BEAT)
            waiting -= {key for key, line in lines if line.startswith(ENDED)}
    except RuntimeError as error:
        print(f"host 0 does not hear of it: {str(error).splitlines()[0]}", file=sys.stderr)


def report_failure(error: BaseException) -> None:
    """After an error that may come from the loss of another host: waits until that would be seen.

    If it is one, this process ends here, with the message that names the lost host.
    """
    if several() and not isinstance(error, KeyboardInterrupt | SystemExit):
        time.sleep(_heartbeat.limit + 3 * _heartbeat.interval)
        while _heartbeat.over.is_set():  # it was seen, and is about to end this process
            time.sleep(_heartbeat.interval)


def leave(code: int, together: bool) -> int:
    """Ends with the others (returns the exit code) or, after an error of its own, before them."""
    if not several():
        return code
    if together:
        import jax

        meet()
        _heartbeat.over.set()
        jax.distributed.shutdown()
        return code
    _say_end(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def meet() -> None:
    """Waits for all others. After it, all can read the files that process 0 has written."""
    if several():
        _heartbeat.barriers += 1
        _heartbeat.client.wait_at_barrier(f"jaxact/{_heartbeat.barriers}", 1000 * DAY)


def agreed(find: Callable[[], Any]) -> Any:
    """What `find` returns (plain values) in the first process, in all of them; all must call it.

    For what is looked up in a shared folder, whose listing may be some seconds old on other hosts.
    """
    if not several():
        return find()
    _heartbeat.asked += 1
    key = f"jaxact/said/{_heartbeat.asked}"
    if first():
        _heartbeat.client.key_value_set(key, json.dumps(find()))
    return json.loads(_heartbeat.client.blocking_key_value_get(key, 1000 * DAY))


def stopping(step: int) -> bool:
    """Has a signal reached any host, and is this the step after which all stop?

    All must ask after every step; until a signal comes, that costs nothing.
    """
    from jax.experimental import multihost_utils

    return several() and multihost_utils.reached_preemption_sync_point(step)
