"""The house rules: who imports whom, sizes, docstrings, lint, live fields."""

import ast
import dataclasses
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxact"
FILES = sorted(PACKAGE.rglob("*.py"))

# room -> what of jaxact it may import (a room, or one module of it). Nobody lists tasks or main:
# the trainer finds a task by its name in the config.
MAY_IMPORT = {
    "fields": set(),
    "config": {"fields"},
    "task": {"config"},
    "ops": {"config"},
    "models": {"config", "ops"},
    "atomic": set(),
    "data": {"config", "task", "atomic"},
    "evaluate": {"config", "atomic"},
    "weights": {"config", "data.safe_pickle"},
    "tasks": {"config", "task", "atomic", "ops", "models", "data", "evaluate", "weights"},
    "train": {
        *("config", "task", "atomic", "data", "evaluate", "exported"),
        *("models.initialise", "ops.target"),
    },
    "modes": {"config", "task", "atomic", "data", "evaluate", "exported", "ops.target", "train"},
    # The annotation files of all systems name what goes into shards.
    "packing": {"config", "atomic", "data", "tasks"},
    "main": {"config", "atomic", "train", "modes"},
    "exported": {"config"},  # runs a model without any of its code
    "manual": {"config", "fields"},  # reads the wings' config modules by their names
}
FLAX_ROOMS = ("models", "train")
LONGEST = 400


def room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def wing(path: pathlib.Path) -> str:
    """The wing of `tasks` that a file is in; "" elsewhere."""
    parts = path.relative_to(PACKAGE).parts
    return parts[1] if len(parts) == 3 and parts[0] == "tasks" else ""


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, those inside functions included."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            found += [(node.lineno, f"{node.module}.{name.name}") for name in node.names]
    return found


def test_every_room_is_known():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms <= MAY_IMPORT.keys(), "a new room needs a row in MAY_IMPORT"


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_import_law(name):
    wrong = []
    for path in (p for p in FILES if room(p) == name):
        for line, found in imported(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{line} imports {found}"
            parts = found.split(".")
            if parts[0] == "flax" and name not in FLAX_ROOMS and path.name != "network.py":
                wrong.append(where)
            if parts[0] != "jaxact" or len(parts) < 2 or parts[1] == name:
                continue
            allowed = {tuple(a.split(".")) for a in MAY_IMPORT[name]}
            if not any(tuple(parts[1 : 1 + len(a)]) == a for a in allowed):
                wrong.append(where)
    assert not wrong, "\n".join(wrong)


def test_no_wing_imports_another():
    wings = {path.parent.name for path in PACKAGE.glob("tasks/*/__init__.py")}
    assert wings, "no wings"
    for path in (p for p in FILES if wing(p)):
        for line, found in imported(ast.parse(path.read_text())):
            parts = found.split(".")
            if parts[:2] == ["jaxact", "tasks"]:
                where = f"{path.relative_to(ROOT)}:{line} imports {found}"
                assert parts[2] == wing(path), where


def test_the_import_law_sees_what_it_should():
    source = "def f():\n    from jaxact.tasks import action\n    import flax.linen as nn\n"
    assert [name for _, name in imported(ast.parse(source))] == [
        "jaxact.tasks.action",
        "flax.linen",
    ]


def test_configs_build_on_the_schema_and_their_task():
    for path in sorted((ROOT / "configs").glob("*.py")):
        for line, found in imported(ast.parse(path.read_text())):
            if found.startswith("jaxact"):
                allowed = ("jaxact.config.", "jaxact.models.specs.", "jaxact.tasks.")
                assert found.startswith(allowed), f"{path}:{line}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_a_variant_changes_the_default_and_no_other_variant(path):
    """A reader needs one hop from a variant to the values that it starts from."""
    spec = importlib.util.spec_from_file_location(f"house_{path.stem}", path)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    # The default, and in crop what stands in its place on a set for two CPU cores.
    starts = {recipe.VARIANTS[""].__name__, "small"}
    variants = {made.__name__ for made in recipe.VARIANTS.values()} - starts
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name in variants:
            calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
            others = {call.id for call in calls if isinstance(call, ast.Name)} & variants
            assert not others, f"{path.name}: {node.name} starts from {', '.join(others)}"


def test_files_are_short():
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        lines = len(path.read_text().splitlines())
        assert lines <= LONGEST, f"{name} has {lines} lines, at most {LONGEST}"


def public(tree: ast.Module):
    """Public functions and classes of a module, and the public methods of those classes."""
    kinds = ast.FunctionDef | ast.ClassDef
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    # A method of one statement may speak for itself.
                    if isinstance(inner, kinds) and inner.name[0] != "_" and len(inner.body) > 1:
                        yield f"{node.name}.{inner.name}", inner


def test_everything_public_says_what_it_is():
    bare = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            bare.append(str(path.relative_to(ROOT)))
        for name, node in public(tree):
            protocol = any("Protocol" in ast.unparse(b) for b in getattr(node, "bases", []))
            body_only = [ast.unparse(b) for b in node.body] == ["..."]
            if not ast.get_docstring(node) and not protocol and not body_only:
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not bare, "without a docstring:\n" + "\n".join(bare)


def test_no_generic_drawers():
    names = {path.stem for path in FILES}
    assert not names & {"utils", "util", "helpers", "common", "manager", "misc", "registry"}


# ---------------------------------------------------------------------------------- clean files


def tool(name: str, *arguments: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed (extra [test])")
    found = subprocess.run(
        [sys.executable, "-m", name, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_lint():
    tool("ruff", "check", "--output-format=concise", ".")


def test_format():
    tool("ruff", "format", "--check", ".")


def test_types():
    tool("mypy")


def tracked() -> list[pathlib.Path]:
    """Files that are, or would be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_path_of_one_machine():
    folders = "|".join(["work", "home", "root", "tmp", "Users"])
    machine = re.compile(rf"(?<![\w.\-/}})~])/({folders})/")
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" in content[:4096]:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if machine.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_no_unfinished_marks():
    mark = re.compile(r"\b(TODO|FIXME|XXX)\b")
    for path in FILES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not mark.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_no_silent_except():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert node.type is not None, f"{where}: bare except"
                assert not all(isinstance(n, ast.Pass) for n in node.body), f"{where}: except: pass"


# --------------------------------------------------------------------------------- live fields

# Looking at a field only to refuse it does not make it work.


def read_names() -> set[str]:
    """Attributes that the package reads, and the names it looks up as text, outside the checks."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef) and node.name.startswith(("validate", "_validate")):
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        # A stage value is read as hyper["mixup"].
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            found.add(str(node.slice.value))
        for child in ast.iter_child_nodes(node):
            visit(child)

    for path in FILES:
        visit(ast.parse(path.read_text()))
    return found


def schemas() -> dict[str, type]:
    """Every dataclass that a config of the package is built of, wherever it is defined."""
    found: dict[str, type] = {}

    def visit(node: object) -> None:
        if isinstance(node, tuple):
            for item in node:
                visit(item)
        elif dataclasses.is_dataclass(node):
            found[f"{type(node).__module__}.{type(node).__name__}"] = type(node)
            for field in dataclasses.fields(node):
                visit(getattr(node, field.name))

    for path in sorted((PACKAGE / "tasks").rglob("[!_]*.py")):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if hasattr(module, "Config"):
            visit(module.Config())
    return found


def test_every_config_field_is_read():
    read = read_names()
    dead = [
        f"{name}.{field.name}"
        for name, schema in schemas().items()
        for field in dataclasses.fields(schema)
        if field.name not in read
    ]
    assert len(schemas()) >= 11
    assert not dead, f"config fields that nothing reads: {', '.join(dead)}"


# ------------------------------------------------------------------------- rooms and plain words

# At most so many files in a flat room; what is larger wants a wing or another room.
FILES_IN_A_ROOM = 22
LINES_IN_ALL = 27_500
LINES_IN_A_FUNCTION = 60
# Functions that are longer, and why.
LONG = {"configs/crop.py:schedule": "the thirty flags of the published guide, as one table"}
# Words that the package no longer uses, and what it says instead.
RENAMED = {
    "purpose": "split",
    "retouch": "augment",
    "photometry": "color",
    "perturb": "pose_augment",
    "footage": "frames",
    "lettering": "drawing",
    "drafts": "atomic",
    "puppet": "stick_figure",
    "journal": "workdir, metrics log",
    "provenance": "predictions",
    "keeper": "Heartbeat",
    "blame": "report_failure",
    "view_of": "stage_data_of",
    "last_view": "last_stage_data",
    "open_fit": "open_setup",
}
# Says nothing of what it holds; a sentence may still need it ("no file was found").
FOUND = 60


def test_rooms_are_small():
    rooms = {path.parent for path in FILES}
    sizes = {str(room.relative_to(ROOT)): len(list(room.glob("*.py"))) for room in rooms}
    crowded = {name: size for name, size in sizes.items() if size > FILES_IN_A_ROOM}
    assert not crowded


def test_every_room_says_what_lives_there():
    for path in PACKAGE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert text.count(".") >= 2, f"{path.relative_to(ROOT)}: two or three sentences"


def test_functions_are_short():
    long = {}
    for path in sorted({*FILES, *ROOT.glob("configs/*.py"), *ROOT.glob("scripts/**/*.py")}):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LINES_IN_A_FUNCTION:
                    long[f"{path.relative_to(ROOT).as_posix()}:{node.name}"] = lines
    assert long.keys() == LONG.keys(), long


def test_the_package_stays_readable():
    assert sum(len(path.read_text().splitlines()) for path in FILES) <= LINES_IN_ALL


@pytest.mark.parametrize("word", sorted(RENAMED))
def test_a_word_that_was_given_up_stays_away(word):
    pattern = re.compile(rf"\b{word}s?\b", re.IGNORECASE)
    for path in (*FILES, *sorted((ROOT / "configs").glob("*.py"))):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            assert not pattern.search(line), f"{where}\nsay: {RENAMED[word]}"


def test_names_say_what_they_hold():
    lines = [line for path in FILES for line in path.read_text().splitlines()]
    assert sum(bool(re.search(r"\bfound\b", line)) for line in lines) < FOUND
