"""Files are written under names that no other host takes, though their process numbers be equal."""

import os
import pathlib
import socket
import threading

import numpy as np
import pytest

from jaxact.atomic import draft, replacing, write_bytes, write_text
from jaxact.tasks.crop import cache
from jaxact.tasks.relation import crops

WRITERS = {
    "pairs": lambda path: crops._write(path, b"x"),
    "pictures": lambda path: cache._store(path, np.zeros((2, 2, 3), np.uint8)),
    "others": lambda path: write_bytes(path, b"x"),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_two_hosts_write_the_same_file(writer, tmp_path, monkeypatch):
    """Containers often have process 1, thread 1 and the same folder."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(threading, "get_ident", lambda: 1)
    drafts = []

    def replace(source, target):
        drafts.append(pathlib.Path(source))
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(pathlib.Path, "replace", replace)
    path = tmp_path / "entry"
    for host in ("a", "b"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        writer(path)
    assert len(set(drafts)) == 2 and {p.parent for p in drafts} == {tmp_path}
    assert os.listdir(tmp_path) == ["entry"]


def test_a_draft_names_its_host_and_keeps_the_suffix(tmp_path):
    path = draft(tmp_path / "video.mp4")
    assert path.parent == tmp_path and path.suffix == ".mp4"
    assert path.name.startswith(f".video.{socket.gethostname()}.")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "before é")
    assert path.read_bytes() == "before é".encode()
    with pytest.raises(RuntimeError), replacing(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "before é"
    assert os.listdir(tmp_path) == ["results.json"], "the draft is deleted"
    with replacing(path) as aside:
        aside.write_text("after")
        assert path.read_text(encoding="utf-8") == "before é"
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["results.json"]


def test_folders_above_a_file_are_made(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"\0\1")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"\0\1"
