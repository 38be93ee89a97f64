"""How a weights file wants its pixels: mean, std and size, read from what lies beside it.

timm writes `config.json` with a `pretrained_cfg`, Hugging Face `preprocessor_config.json`; a
`.safetensors` file may carry a `pretrained_cfg` in its own metadata. The nearest source wins: the
file itself, then `preprocessor_config.json`, then `config.json`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxact.config import UserError

_LIMIT = 4 << 20  # bytes of a JSON file
_HEADER_LIMIT = 100 << 20  # bytes of a safetensors header, the format's own limit
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What the network saw in training; pixels in 0..1, red green blue."""

    mean: tuple[float, float, float] = _MEAN
    std: tuple[float, float, float] = _STD
    size: int = 0
    """px, side of the square image; 0 = not told."""
    crop: float = 0.0
    """Share of the resized side that the centre crop keeps; 0 = not told."""
    interpolation: str = ""
    architecture: str = ""
    """timm's name of the network, where told."""
    source: str = "ImageNet's by default"

    def __str__(self) -> str:
        size = f"{self.size} px" if self.size else "size not told"
        return f"mean {self.mean}, std {self.std}, {size} ({self.source})"


def preprocessing(path: str | Path) -> Preprocessing:
    """The preprocessing of a weights file; ImageNet's mean and std where nothing tells.

    Raises: UserError naming file and field for JSON that is damaged, or numbers out of range.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        text = _metadata(path).get("pretrained_cfg")
        if text is not None:
            where = f"{path} metadata"
            return _timm(_parsed(str(text), where), where, "")
    beside = path.parent / "preprocessor_config.json"
    if beside.is_file():
        return _hugging_face(_parsed(_text(beside), str(beside)), str(beside))
    beside = path.parent / "config.json"
    if beside.is_file():
        config = _parsed(_text(beside), str(beside))
        told = config.get("pretrained_cfg")
        if isinstance(told, Mapping):
            return _timm(told, str(beside), str(config.get("architecture", "")))
        if "image_size" in config:
            size = _side(config["image_size"], str(beside), "image_size")
            return Preprocessing(
                size=size, source=f"size of {beside.name}, ImageNet's mean and std"
            )
    return Preprocessing()


def _timm(config: Mapping[str, Any], where: str, architecture: str) -> Preprocessing:
    """timm's `pretrained_cfg`."""
    size = config.get("input_size")
    return Preprocessing(
        _three(config.get("mean", _MEAN), where, "mean"),
        _three(config.get("std", _STD), where, "std"),
        0 if size is None else _side(size, where, "input_size"),
        _number(config.get("crop_pct", 0.0), where, "crop_pct"),
        str(config.get("interpolation", "")),
        architecture or str(config.get("architecture", "")),
        Path(where).name,
    )


def _hugging_face(config: Mapping[str, Any], where: str) -> Preprocessing:
    """An image processor's file; sizes are a number or a dict of sides."""
    size = config.get("crop_size") if config.get("do_center_crop") else config.get("size")
    size = config.get("size") if size is None else size
    return Preprocessing(
        _three(config.get("image_mean", _MEAN), where, "image_mean"),
        _three(config.get("image_std", _STD), where, "image_std"),
        0 if size is None else _side(size, where, "size"),
        _number(config.get("crop_pct") or 0.0, where, "crop_pct"),
        source=Path(where).name,
    )


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(_LIMIT)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _parsed(text: str, where: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: holds a {type(config).__name__}, not an object of settings")
    return config


def _metadata(path: Path) -> Mapping[str, Any]:
    """The metadata of a safetensors file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, _HEADER_LIMIT)).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: header cannot be read ({error})") from error
    metadata = _parsed(header, f"{path} header").get("__metadata__", {})
    return metadata if isinstance(metadata, Mapping) else {}


def _number(value: Any, where: str, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: {field} {value!r}: a number is allowed")
    return float(value)


def _three(value: Any, where: str, field: str) -> tuple[float, float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise UserError(f"{where}: {field} {value!r}: 3 numbers are allowed (red green blue)")
    red, green, blue = (_number(item, where, field) for item in value)
    if field.endswith("std") and min(red, green, blue) <= 0:
        raise UserError(f"{where}: {field} {value!r}: numbers above 0 are allowed")
    return red, green, blue


def _side(value: Any, where: str, field: str) -> int:
    """Pixels, from a number, [channels, height, width] or a dict of sides."""
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", value.get("height"))
    if isinstance(value, (list, tuple)):
        value = value[-1] if value else None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 14:
        raise UserError(f"{where}: {field} {value!r}: pixels, 1 to {1 << 14}, are allowed")
    return value
