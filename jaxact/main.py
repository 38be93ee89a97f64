"""The one command: flags -> mode -> one call. User errors become one line and exit code 2.

python -m jaxact.main --config=configs/x3d.py:tiny --workdir=runs/tiny [--config.field=value ...]
"""

import contextlib
import dataclasses
import difflib
import errno
import json
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.train import hosts

# Exit codes with which all hosts end at the same step: done, diverged, interrupted.
TOGETHER = (0, 3, 128 + signal.SIGTERM)
IN_WORKDIR = ("train", "eval")  # modes that need --workdir; they run on several hosts too
FROM_CHECKPOINT = ("predict", "export")  # modes that need --workdir or --checkpoint
MODES = ("train", "eval", "predict", "check", "bench", "export", "ensemble")

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: configs/NAME.py[:variant].")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of checkpoints, logs and results.")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "eval, predict, export: a checkpoint folder, a work dir, or a PyTorch file."
)
RESUME = flags.DEFINE_string(
    "resume_from", "", "train: a work dir whose newest state a fresh --workdir goes on from."
)
INPUT = flags.DEFINE_string("input", "", "predict: a file, a folder, or a CSV or JSONL list.")
OUTPUT = flags.DEFINE_string(
    "output", "-", "predict: file of JSON lines, - = standard output; export: a new folder."
)
POSES = flags.DEFINE_string(
    "poses", "", "predict: keypoints of the videos, a .jsonl or .pkl file or a folder of them."
)
WINDOW = flags.DEFINE_float("window", 0.0, "predict: seconds of a window; 0 = the whole video.")
STRIDE = flags.DEFINE_float("stride", 1.0, "predict: seconds from window to window.")
TOP = flags.DEFINE_integer("top", 5, "predict: classes named.")
RENDER = flags.DEFINE_string(
    "render", "", "predict: an .mp4 (pictures: .png) file, or a folder: the results drawn in."
)
RENDER_SIZE = flags.DEFINE_integer(
    "render_size", 0, "predict: px of the shorter side of those videos; 0 = as they are."
)
STEPS = flags.DEFINE_integer("bench_steps", 10, "bench: steps timed.", lower_bound=1)
BATCH = flags.DEFINE_integer("export_batch", 0, "export: examples of a call; 0 = any number.")
RUNS = flags.DEFINE_list(
    "runs", [], "ensemble: work dirs or predictions .npz; DIR:rgb takes one stream's scores."
)
WEIGHTS = flags.DEFINE_list("weights", [], "ensemble: one number for each run; none = equal.")
SEARCH = flags.DEFINE_string("search", "", "ensemble: grid | least_squares: fit weights on val.")
SPACE = flags.DEFINE_string("space", "prob", "ensemble: prob | score | logit: what is averaged.")
SPLIT = flags.DEFINE_string("split", "test", "ensemble: val | test: the predictions fused.")


def parse(arguments: list[str]) -> None:
    """Reads the flags.

    Raises UserError: an unknown flag or field, a value of the wrong type.
    """
    try:
        rest = FLAGS(arguments)
    except flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from None
    except (KeyError, IndexError, AttributeError) as error:
        raise UserError(unknown_field(arguments, error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --")
    if not FLAGS["config"].present and MODE.value != "ensemble":
        raise UserError("--config is missing; for example --config=configs/x3d.py:tiny")


def unknown_field(arguments: list[str], error: Exception) -> str:
    """The line for an override that names no field, with the nearest names."""
    given = [a for a in arguments if a.startswith(("--config=", "-config="))]
    names = field_names(schema.load(*given[-1].split("=", 1)[1].split(":", 1))) if given else []
    for argument in arguments:
        name = argument.lstrip("-").split("=", 1)[0]
        if name.startswith("config.") and name.removeprefix("config.") not in names:
            close = difflib.get_close_matches(name.removeprefix("config."), names, 3)
            hint = f"; did you mean config.{', config.'.join(close)}?" if close else ""
            return f"--{name} is no field of this config{hint}"
    return f"--config: {str(error).strip(chr(34))}"


def field_names(node: object, path: str = "") -> list[str]:
    """Dotted names of all fields of nested dataclasses, stages and groups with their index."""
    names: list[str] = []
    if dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            name = f"{path}.{field.name}" if path else field.name
            names += [name, *field_names(getattr(node, field.name), name)]
    elif isinstance(node, tuple):
        for index, item in enumerate(node):
            if dataclasses.is_dataclass(item):
                names += field_names(item, f"{path}[{index}]")
    return names


def run() -> int:
    """One call for the mode that the flags name; returns the exit code."""
    mode = MODE.value
    if mode == "ensemble":
        ensemble()
        return 0
    config = loaded_config()
    schema.validate(config)
    if config.mesh.hosts != "one" and mode not in IN_WORKDIR:
        raise UserError(
            f"config.mesh.hosts={config.mesh.hosts!r} with --mode={mode}; allowed: one "
            "(only train and eval run on several hosts)"
        )
    given = WORKDIR.value or (CHECKPOINT.value and mode in FROM_CHECKPOINT)
    if not given and mode in IN_WORKDIR + FROM_CHECKPOINT:
        raise UserError(f"--workdir is missing; --mode={mode} needs a folder")
    workdir = pathlib.Path(WORKDIR.value or ".")
    hosts.supervise(config.mesh, workdir)
    # Imported late, so that a misspelt flag is answered at once.
    from jaxact.modes import bench, check, evaluate, predict
    from jaxact.train import loop
    from jaxact.train.run import open_run

    calls: dict[str, Callable[[Any], Any]] = {
        "train": loop.train,
        "eval": lambda opened: show(evaluate.evaluate_split(opened, CHECKPOINT.value)),
        "predict": predict_input,
        "check": check.check,
        "bench": lambda opened: show(bench.bench(opened, STEPS.value)),
        "export": export_model,
    }
    hosts.begin(config.mesh, workdir, saves=mode == "train")
    if mode in FROM_CHECKPOINT:
        config = predict.with_names(config, workdir, CHECKPOINT.value)
    calls[mode](open_run(config, workdir, RESUME.value))
    return 0


def show(results: dict[str, Any]) -> None:
    """Prints results as JSON, on the first host."""
    if hosts.first():
        print(json.dumps(results, indent=1))


def predict_input(opened: Any) -> None:
    """--mode=predict with its flags."""
    from jaxact.modes import predict

    if not INPUT.value:
        raise UserError("--input is missing; --mode=predict needs a file, a folder or a list")
    fields = (INPUT, POSES, WINDOW, STRIDE, TOP, RENDER, RENDER_SIZE)  # of Request, in its order
    values: list[Any] = [flag.value for flag in fields]
    request = predict.Request(*values)
    with output_lines(OUTPUT.value) as emit:
        predict.predict(opened, CHECKPOINT.value, request, emit)


@contextlib.contextmanager
def output_lines(target: str) -> Iterator[Callable[[str], None]]:
    """Gives a function that writes a line to a file, or ("-") to standard output.

    The file is replaced at the end, after an error too, and stays as it was if there is no line.
    Raises UserError: the file's folder does not exist.
    """
    if target == "-":
        yield lambda line: print(line, flush=True)
        return
    path = pathlib.Path(target)
    if not path.parent.is_dir():
        raise UserError(f"--output={target}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"--output={target} is a folder; give a file")
    plain = path.is_file() or not path.exists()  # not a device or a pipe
    aside = path.with_name(path.name + ".part") if plain else path
    count = 0
    with aside.open("w") as file:

        def write(line: str) -> None:
            nonlocal count
            file.write(line + "\n")
            file.flush()
            count += 1

        try:
            yield write
        finally:
            file.close()
            if plain and count:
                aside.replace(path)
            elif plain:
                aside.unlink()


def export_model(opened: Any) -> None:
    """--mode=export with its flags."""
    from jaxact.modes import export

    if OUTPUT.value == "-":
        raise UserError("--output is missing; --mode=export needs a new folder")
    output = pathlib.Path(OUTPUT.value)
    contract = export.export(opened, CHECKPOINT.value, output, BATCH.value)
    show({"output": str(output), **contract["self_check"]})


def ensemble() -> None:
    """Fuses stored predictions; no config, no model, no data."""
    from jaxact.modes import ensemble
    from jaxact.train.workdir import say

    if FLAGS["config"].present:
        say("--mode=ensemble reads stored predictions only: --config is not used")
    if not WORKDIR.value:
        raise UserError("--workdir is missing; --mode=ensemble needs a folder for the fused scores")
    request = ensemble.request(RUNS.value, WEIGHTS.value, SEARCH.value, SPACE.value, SPLIT.value)
    print(ensemble.ensemble(request, pathlib.Path(WORKDIR.value)))


def loaded_config() -> schema.Config:
    """The config object. Raises UserError where the recipe file does not exist."""
    flag: Any = FLAGS["config"]
    path = flag.config_filename.split(":")[0]
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config={path} does not exist; recipes are files like configs/x3d.py")
    config = CONFIG.value
    if not isinstance(config, schema.Config):
        raise UserError("--config: get_config must return a jaxact.config.Config")
    return config


def cache_compilations() -> None:
    """Keeps compiled programs in $JAXACT_CACHE (default ~/.cache/jaxact), for each JAX version."""
    import jax

    root = os.environ.get("JAXACT_CACHE") or os.path.expanduser("~/.cache/jaxact")
    if root != "off":
        jax.config.update("jax_compilation_cache_dir", f"{root}/jax-{jax.__version__}")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(arguments: list[str]) -> int:
    """Runs the command; on several hosts it ends with the others. Returns the exit code."""
    try:
        code = outcome(arguments)
    except BaseException as error:
        hosts.report_failure(error)
        if not hosts.several():
            raise
        traceback.print_exc()
        code = 1
    return hosts.leave(code, together=code in TOGETHER)


def outcome(arguments: list[str]) -> int:
    """Runs and turns exceptions into the documented exit codes."""
    try:
        parse(arguments)
        cache_compilations()
        from jaxact.modes.export import Unequal
        from jaxact.train.setup import Diverged, Interrupted

        try:
            return run()
        except (Unequal, Diverged) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1 if isinstance(error, Unequal) else 3
        except Interrupted as error:
            return 128 + error.number
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = error.filename or WORKDIR.value
        print(f"error: cannot write to {where}: {error.strerror}; free some space", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def with_huge_pages() -> None:
    """Starts this process again with malloc asking for huge pages, once, where glibc can.

    XLA's CPU backend takes a fresh arena of temporaries for every step; in 4 KiB pages the kernel
    spends a third of the step clearing them (docs/benchmarks.md). glibc reads this setting only at
    its start.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, "-m", "jaxact.main", *sys.argv[1:]])


if __name__ == "__main__":
    with_huge_pages()
    sys.exit(main(sys.argv))
