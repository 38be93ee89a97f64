"""README and docs/: sizes, links, paths, and every command that they show."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxact import manual

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:sh|bash|shell|console)?\n(.*?)^```", re.M | re.S)


def commands(*pages: pathlib.Path) -> list[str]:
    """The fenced commands of pages that start with make or python, one line each."""
    lines = []
    for page in pages:
        for block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r" \[[^]]*\]", "", line.strip().removeprefix("$ "))  # [options ...]
                line = re.sub(r"^([A-Z]+=\S+ )+", "", line.split(" #")[0].strip())
                if re.match(r"(make\b|python3? )", line):
                    lines.append(line)
    return lines


def shown(pattern: str) -> list[str]:
    """Those of all pages that match."""
    return [line for line in commands(*PAGES) if re.match(pattern, line)]


def in_forks(program: str, lines: list[str]) -> str:
    """What goes wrong with any of the lines; the program reads them on its standard input."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        input="\n".join(lines),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    return ended.stdout + (ended.stderr if ended.returncode else "")


# ------------------------------------------------------------------------------------------ pages


def test_the_page_of_fields_is_current():
    text = (ROOT / "docs" / "config.md").read_text()
    assert text == manual.page(), "docs/config.md is old; run `make docs`"


def test_every_field_of_the_page_is_in_one_table():
    for table in re.split(r"^#.*\n", manual.page(), flags=re.M):
        names = re.findall(r"^\| (`\w+`)", table, re.M)
        assert len(names) == len(set(names)), names
        rows = re.findall(r"^\|.*", table, re.M)
        assert all(row.count("|") - row.count(r"\|") == 6 for row in rows), rows


def test_the_readme_is_short():
    assert len(README.read_bytes()) < 6000


def test_the_readme_shows_a_small_picture():
    (picture,) = re.findall(r'<img src="([^"]+)"', README.read_text())
    assert (ROOT / picture).stat().st_size < 300_000


def test_the_readme_leads_to_every_page():
    linked = {
        (ROOT / name).resolve() for name in re.findall(r"\]\((docs/\w+\.md)", README.read_text())
    }
    assert linked == set(PAGES[1:])


def anchors(page: pathlib.Path) -> set[str]:
    """The names under which the headings of a page can be linked."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", link):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_the_repository_exist(page):
    rooms = "configs|docs|jaxact|scripts|tests"
    names = re.findall(rf"(?<![\w./-])(?:{rooms})/[\w./-]*", page.read_text())
    for name in names:
        assert (ROOT / name.rstrip(".")).exists() or "NAME" in name, name


# --------------------------------------------------------------------------------------- commands


def test_the_readme_names_the_two_commands():
    assert {"make demo", "make test"} <= set(commands(README))


def test_make_targets_exist():
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in shown("make"):
        words = [w for w in command.split()[1:] if "=" not in w and not w.startswith("-")]
        assert set(words) <= rules, f"{command}; the Makefile has {sorted(rules)}"


def test_modules_that_are_run_exist():
    names = {line.split()[2] for line in shown(r"python3? -m ")}
    assert names >= {"jaxact.main", "jaxact.exported"}
    for name in names:
        assert ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file(), name


PARSE_EACH = """
import os, shlex, sys
from jaxact import config, main
for line in sys.stdin.read().splitlines():
    child = os.fork()  # flags are parsed once in a process
    if child == 0:
        try:
            words = shlex.split(line)
            sys.argv = words[words.index("jaxact.main") :]  # the parser of the config looks here
            main.parse(sys.argv)
            if main.FLAGS["config"].present:
                made = main.loaded_config()
                wing = sys.modules[type(made).__module__]
                config.validate(made)
                getattr(wing, "validate", config.validate)(made)
        except config.UserError as error:
            print(f"{line}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_commands_parse():
    lines = shown(r"python3? -m jaxact\.main\b")
    assert len(lines) > 20
    assert not (wrong := in_forks(PARSE_EACH, lines)), wrong


# Each script runs until it has parsed its flags.
RUN_EACH = """
import argparse, os, pathlib, runpy, shlex, sys
import jax  # once for all
original = argparse.ArgumentParser.parse_args
def parse_and_leave(self, *arguments):
    original(self, *arguments)
    os._exit(0)
argparse.ArgumentParser.parse_args = parse_and_leave
for line in sys.stdin.read().splitlines():
    child = os.fork()
    if child == 0:
        sys.argv = shlex.split(line)[1:]
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        os.dup2(1, 2)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            print(f"not taken: {line}", flush=True)
            os._exit(1)
    os.waitpid(child, 0)
"""


def test_scripts_take_the_flags():
    lines = shown(r"python3? \S+\.py")
    assert len(lines) > 15
    scripts = {line: ROOT / line.split()[1] for line in lines}
    for line, script in scripts.items():
        assert script.is_file(), line
    parsing = [line for line, script in scripts.items() if "ArgumentParser" in script.read_text()]
    assert not (wrong := in_forks(RUN_EACH, parsing)), wrong
