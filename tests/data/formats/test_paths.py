"""File names stay inside the folder they are meant for."""

import os

from hypothesis import given
from hypothesis import strategies as st

from decomp.data.formats.paths import safe_name


@given(st.text())
def test_safe_names_stay_in_their_folder(name):
    safe = safe_name(name)
    assert os.path.basename(safe) == safe and safe not in ("", ".", "..") and ".." not in safe
    assert safe.isascii() and len(safe) <= 100 and not safe.startswith(".")


def test_usual_layer_names_stay_readable():
    assert safe_name("features.3.conv_1") == "features.3.conv_1"
