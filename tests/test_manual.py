"""Rows of the manual: what a record and its comments say of each field."""

import dataclasses
import os
import subprocess
import sys
from typing import ClassVar

from command import ROOT

from jaxact import config as schema
from jaxact import manual


def test_a_field_says_its_type_default_rule_and_comment():
    rows = {row.path: row for row in manual.fields_of(schema.Config)}
    assert rows["optim.momentum"][1:] == ("float", "0.9", "0 to below 1", "sgd")
    assert rows["eval.split"][2:] == (
        *("'test'", "val, test"),
        "for --mode=eval and the end of training",  # from the line above the field
    )
    assert rows["optim.groups[i].lr"].meaning == "factor on the learning rate"
    assert rows["optim"].meaning.startswith("Optimiser") and not rows["optim"].default


@dataclasses.dataclass
class Own(schema.Save):
    every: str = "7 steps"
    kind: str = "a"  # a comment of
    # two lines
    part: str = ""  # its own

    # A heading of what follows.
    constant: ClassVar[int] = 3
    side: float = 0.5  # inside


def test_a_field_declared_again_keeps_its_comment():
    rows = {row.path: row for row in manual.fields_of(Own, "save.")}
    assert rows["save.every"][2:] == ("'7 steps'", "", "duration between checkpoints")


def test_comments_go_to_their_fields():
    meanings = {row.path: row.meaning for row in manual.fields_of(Own)}
    assert meanings["kind"] == "a comment of two lines"
    assert (meanings["part"], meanings["side"]) == ("its own", "inside")


def test_the_manual_needs_no_jax():
    program = "import sys; from jaxact import manual; manual.page(); sys.exit('jax' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
