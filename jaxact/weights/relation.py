"""Names of the pair classifier in AsukaLmy/simplename, for `models.relation.Relation`.

Its backbone is torchvision's ResNet without the classifier as an `nn.Sequential`: the stem's
convolution and BN are 0 and 1, the stages 4 to 7. ImageNet weights alone load by `weights.images`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxact.weights import convert, images
from jaxact.weights.convert import Report
from jaxact.weights.table import Rule, Table, Tensors, dense

_MODULES = "backbone.backbone."


def _rules(hidden: int) -> tuple[Rule, ...]:
    """The rules for a relation MLP of so many hidden layers; each is three modules long there."""
    block = f"{_MODULES}{{s+3}}.{{j}}."
    rules = [*images.torchvision_resnet(f"{_MODULES}0", f"{_MODULES}1", block)]
    rules += dense("backbone.feature_mapper.0", "mapper")
    rules += dense("person_encoder.0", "person0")
    rules += dense("person_encoder.3", "person1")
    rules += dense("spatial_encoder.0", "spatial")
    # [k, i, j] on both sides.
    rules.append(Rule(("bilinear.weight",), "params/bilinear/kernel"))
    rules.append(Rule(("bilinear.bias",), "params/bilinear/bias"))
    for number in range(hidden):
        rules += dense(f"relation_network.{3 * number}", f"relation{number}")
    return (*rules, *dense(f"relation_network.{3 * hidden}", "label"))


def tables(tensors: Tensors, target: Mapping[str, Any]) -> Sequence[Table]:
    """The original's table for the target's number of hidden layers, and those of its ResNet."""
    hidden = sum(name.startswith("relation") for name in target.get("params", {}))
    own = Table("simplename pair classifier", _rules(hidden), heads=("label",))
    return (own, *images.tables(tensors, target))


def load(path: str | Path, target: Mapping[str, Any], **options: Any) -> tuple[dict, Report]:
    """`convert.load` for a Relation's variables: the original's checkpoints or a ResNet's."""
    return convert.load(path, target, tables, **options)
