"""Digests depend on the content alone."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from decomp.data.formats.digests import digest_file, digest_json, plain_value
from decomp.errors import FileError


def test_a_file_digest_is_sha256_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    content = bytes(range(256)) * 5000  # more than one block of reading
    (tmp_path / "b").write_bytes(content)
    assert digest_file(tmp_path / "b") == hashlib.sha256(content).hexdigest()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileError, match="frozen.h5: the file must be readable"):
        digest_file(tmp_path / "frozen.h5")


def test_equal_json_values_have_equal_digests_and_others_have_not():
    assert digest_json({"a": 1, "b": [1.5]}) == digest_json({"b": (1.5,), "a": np.int32(1)})
    assert digest_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert len({digest_json(value) for value in ({"a": 1}, {"a": "1"}, {"a": 1.5}, {"b": 1}, {"a": [1]})}) == 5
    with pytest.raises(ValueError, match="JSON compliant"):
        digest_json({"a": float("nan")})


def test_arrays_and_paths_become_plain_data_and_others_are_refused():
    assert plain_value(np.arange(3)) == [0, 1, 2] and plain_value(torch.tensor(1.5)) == 1.5
    assert plain_value(Path("a") / "b") == str(Path("a") / "b")
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        plain_value({1})
