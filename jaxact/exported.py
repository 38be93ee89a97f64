"""Runs what `--mode=export` wrote, without the code of the model.

    from jaxact import exported
    model = exported.load("out")
    scores = model(rgb=clips)["scores"]  # u8[b, t, h, w, 3] -> f32[b, k]

Needs JAX, NumPy and flatbuffers, and of this package nothing but the error class. As a command:

    python -m jaxact.exported out --input=batch.npz --output=scores.npz
"""

import argparse
import hashlib
import importlib.util
import io
import json
import pathlib
import sys
import zipfile
from typing import Any

import jax
import numpy as np
from jax import export

from jaxact.config import UserError

FORMAT = 1  # of contract.json; a reader of another format refuses the folder
PASSED_ON = ("ids", "label")  # arrays of the command's input that are copied to its output


class Exported:
    """A loaded artefact: `contract` (the content of contract.json), `classes` and a call."""

    def __init__(self, contract: dict[str, Any], program: Any, weights: dict[str, Any]):
        self.contract = contract
        self.classes: tuple[str, ...] = tuple(contract["classes"])
        self._weights = jax.device_put(weights)
        self._program = jax.jit(program.call)

    def __call__(self, **arrays: Any) -> dict[str, np.ndarray]:
        """The outputs that the contract lists, of the inputs that it lists; any b where it says b.

        Compiles once for each b.
        Raises UserError: a missing or unknown array, another dtype or shape.
        """
        given = {name: np.asarray(array) for name, array in arrays.items()}
        _check(self.contract["inputs"], given)
        outputs = self._program(self._weights, given)
        return {name: np.asarray(array) for name, array in outputs.items()}


def load(folder: str | pathlib.Path) -> Exported:
    """An artefact from its folder, for the platform this process runs on.

    Raises UserError: a file is missing or changed, or made for another platform or JAX.
    """
    folder = pathlib.Path(folder)
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("exported models need flatbuffers; install the extra [export]")
    contract = _contract(folder)
    program = _program(folder, contract)
    try:
        with np.load(io.BytesIO(_verified(folder, contract, contract["weights"]))) as file:
            weights = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder / contract['weights']} is no .npz file: {error}") from None
    return Exported(contract, program, weights)


def _contract(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "contract.json"
    if not path.is_file():
        raise UserError(f"{folder} is no exported model (it has no contract.json)")
    try:
        contract = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(contract, dict) or contract.get("format") != FORMAT:
        was = contract.get("format") if isinstance(contract, dict) else None
        raise UserError(f"{path}: format {was!r} is not known here; allowed: {FORMAT}")
    wanted = ("classes", "inputs", "outputs", "programs", "weights", "sha256", "versions")
    for name in wanted:
        if name not in contract:
            raise UserError(f"{path} has no entry {name!r}; it holds {', '.join(contract)}")
    return contract


def _verified(folder: pathlib.Path, contract: dict[str, Any], name: str) -> bytes:
    """The content of one file of the folder, which must be the one that was exported."""
    path = folder / pathlib.PurePath(name).name
    if not path.is_file():
        raise UserError(f"{path} is missing; contract.json names it")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != contract["sha256"].get(name):
        raise UserError(f"{path} is not the file that was exported (its sha256 differs)")
    return content


def _program(folder: pathlib.Path, contract: dict[str, Any]) -> Any:
    """The program for this platform."""
    here = export.default_export_platform()
    oldest = export.minimum_supported_calling_convention_version
    newest = export.maximum_supported_calling_convention_version
    for row in contract["programs"]:
        if here not in row["platforms"]:
            continue
        if not oldest <= row["calling_convention"] <= newest:
            raise UserError(
                f"{folder}: exported by jax {contract['versions'].get('jax')} with calling "
                f"convention {row['calling_convention']}; jax {jax.__version__} reads "
                f"{oldest} to {newest}: export it again"
            )
        content = _verified(folder, contract, row["file"])
        try:
            return export.deserialize(bytearray(content))
        except ValueError as error:
            line = str(error).splitlines()[0]
            raise UserError(
                f"{folder / row['file']}: jax {jax.__version__} cannot read it: {line}"
            ) from None
    known = ", ".join(name for row in contract["programs"] for name in row["platforms"])
    raise UserError(f"{folder} has no program for {here}; exported for: {known}")


def _check(inputs: dict[str, Any], given: dict[str, np.ndarray]) -> None:
    """Every array is there, as the contract says, and all have one b."""
    for name in (*inputs, *given):
        if name not in given or name not in inputs:
            what = "is missing" if name not in given else "is no input"
            raise UserError(f"{name} {what}; the inputs are {', '.join(inputs)}")
    sizes = {}
    for name, port in inputs.items():
        array, wanted = given[name], port["shape"]
        fits = array.ndim == len(wanted) and all(
            one == other or one == "b" for one, other in zip(wanted, array.shape, strict=True)
        )
        if not fits or not array.shape[0]:
            shown = "[" + ", ".join(map(str, wanted)) + "]"
            raise UserError(f"{name} has the shape {list(array.shape)}; allowed: {shown}")
        if array.dtype != np.dtype(port["dtype"]):
            raise UserError(f"{name} is {array.dtype}; allowed: {port['dtype']}")
        sizes[name] = array.shape[0]
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"the inputs hold different numbers of examples: {shown}")


def run(folder: str, source: str, destination: str) -> int:
    """Scores the arrays of one .npz file into another; returns the number of examples.

    `ids` and `label` of the input go along, so that the result reads like a run's predictions.
    Raises UserError: as `load` and the call, or a file cannot be read or written.
    """
    model = load(folder)
    path, out = pathlib.Path(source), pathlib.Path(destination)
    if not out.parent.is_dir():
        raise UserError(f"--output={out}: there is no folder {out.parent}")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"--input={path} does not exist") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"--input={path} is no .npz file of plain arrays: {error}") from None
    along = {name: arrays.pop(name) for name in PASSED_ON if name in arrays}
    scored: dict[str, Any] = {**along, **model(**arrays)}
    with out.open("wb") as file:  # savez would add a suffix to a bare name
        np.savez(file, **scored)
    return len(next(iter(arrays.values())))


def main(arguments: list[str]) -> int:
    """The command; the user's mistakes become one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="jaxact.exported", description="Runs an exported model.")
    parser.add_argument("folder", help="what --mode=export wrote")
    parser.add_argument(
        "--input", required=True, help=".npz of the inputs that contract.json lists"
    )
    parser.add_argument("--output", required=True, help=".npz to write the outputs to")
    given = parser.parse_args(arguments)
    try:
        count = run(given.folder, given.input, given.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} examples -> {given.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
