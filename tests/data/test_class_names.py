"""Files of class names."""

import gzip
import json

import pytest

from jaxact.config import UserError
from jaxact.data.class_names import read_names


def test_a_text_file_and_the_config_of_a_run(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffrun\r\n\n jump \n".encode())
    assert read_names(str(tmp_path / "names.txt")) == ("run", "jump")
    (tmp_path / "names.txt.gz").write_bytes(gzip.compress(b"run\njump\n"))
    assert read_names(str(tmp_path / "names.txt.gz")) == ("run", "jump")
    (tmp_path / "config.json").write_text(json.dumps({"classes": ["run", "jump"], "seed": 1}))
    assert read_names(str(tmp_path / "config.json")) == ("run", "jump")


def test_files_without_names(tmp_path):
    path = tmp_path / "names.json"
    with pytest.raises(UserError, match=r"config\.data\.class_names='.*json' does not exist"):
        read_names(str(path))
    for text in ("{", "[]", "{}", '{"classes": "run"}', '{"classes": [1]}'):
        path.write_text(text)
        with pytest.raises(UserError, match="needed: JSON with a list 'classes'"):
            read_names(str(path))
    (tmp_path / "names.txt").write_bytes("Läufer".encode("latin-1"))
    with pytest.raises(UserError, match=r"names\.txt: cannot be read"):
        read_names(str(tmp_path / "names.txt"))
