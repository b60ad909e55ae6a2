"""JSON files: values read back as written, and each kind of broken or hostile file is refused by name."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decomp.data.formats.json_files import MAX_JSON_BYTES, read_json, write_json
from decomp.errors import FileError, NumericalError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(value=st.dictionaries(st.text(), plain, max_size=4))
def test_json_reads_back_what_was_written(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_takes_numpy_numbers_and_paths(tmp_path):
    write_json(tmp_path / "a.json", {"n": np.int64(3), "x": np.arange(2.0), "p": tmp_path})
    assert read_json(tmp_path / "a.json") == {"n": 3, "x": [0.0, 1.0], "p": str(tmp_path)}


def test_json_holds_finite_numbers_only(tmp_path):
    with pytest.raises(NumericalError, match="finite"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


GOOD = json.dumps({"format": "decomp run", "format_version": 1, "name": "x", "list": [1, 2, {"a": 3}]})


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\x89HDF\r\n\x1a\n\xff\xfe", "UTF-8"),
        (b"hello", "must be JSON"),
        (b'{"format": "other", "format_version": 1}', "must be a 'decomp run' file, got 'other'"),
        (b"[1, 2]", "must be a 'decomp run' file, got another file"),
        (b'{"format": "decomp run", "format_version": 2}', "up to format 1, got format 2"),
        (b'{"format": "decomp run", "format_version": "1"}', "whole number"),
        (b'{"format": "decomp run", "format_version": true}', "whole number"),
        (b'{"format": "decomp run"}', "whole number"),
        (b'{"format": "decomp run", "format_version": 1, "x": NaN}', "NaN"),
        (b'{"format": "decomp run", "format_version": 1, "x": 1e999}', "finite"),
        (b'{"format": "decomp run", "format_version": 1, "x": 1, "x": 2}', "'x' twice"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "64 levels"),
        (b"[" * 200_000 + b"]" * 200_000, "levels|JSON"),
        (b'{"x": "' + b"a" * 2000 + b'"}', "at most"),
        (b'{"x": ' + b"9" * 1000 + b"}", "decomp run"),
    ],
)
def test_broken_foreign_and_hostile_json_is_named(tmp_path, content, says):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    limit = 1500 if b"aaaa" in content else MAX_JSON_BYTES
    with pytest.raises(FileError, match=says) as caught:
        read_json(path, kind="decomp run", max_bytes=limit, fix="freeze again")
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and len(line) < 500


@pytest.mark.parametrize("length", range(1, len(GOOD)))
def test_json_cut_anywhere_is_refused_as_cut_short(tmp_path, length):
    path = tmp_path / "run.json"
    path.write_text(GOOD[:length])
    with pytest.raises(FileError, match="cut short|must be JSON") as caught:
        read_json(path, kind="decomp run", fix="freeze again")
    assert "freeze again" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match="does not exist; freeze again"):
        read_json(tmp_path / "run.json", fix="freeze again")


def test_a_seal_names_a_file_that_was_edited(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"speedup": 4.0, "layers": [1, 2]}, seal=True)
    assert read_json(path, sealed=True) == {"speedup": 4.0, "layers": [1, 2]}
    path.write_text(path.read_text().replace("4.0", "4.5"))
    with pytest.raises(FileError, match="must match the digest in it, got a damaged or edited one"):
        read_json(path, sealed=True)
    write_json(path, {"speedup": 4.0})
    with pytest.raises(FileError, match="must match the digest"):
        read_json(path, sealed=True)
    assert read_json(path, sealed=None) == {"speedup": 4.0}  # of a kind that once had none
    write_json(path, {"speedup": 4.0}, seal=True)
    path.write_text(path.read_text().replace("4.0", "4.5"))
    with pytest.raises(FileError, match="must match the digest"):
        read_json(path, sealed=None)


def test_a_file_of_an_older_version_is_read(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1}, kind="decomp plan", format_version=2)
    assert read_json(tmp_path / "a.json", kind="decomp plan", format_version=3)["x"] == 1
