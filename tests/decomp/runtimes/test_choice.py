"""Choice of a runtime by name."""

import pytest

from decomp.errors import UsageError
from decomp.runtimes.choice import runtime
from decomp.runtimes.names import RUNTIMES, lacking
from decomp.runtimes.runtime import conditions


def test_every_installed_runtime_is_made_with_its_name_and_layout():
    made = {name: runtime(name) for name in RUNTIMES if not lacking(name)}
    assert {name: one.name for name, one in made.items()} == {name: name for name in made}
    assert {one.layout for one in made.values()} == {"contiguous"}
    assert runtime("compile", "channels-last").layout == "channels-last"
    assert len({str(conditions(one)) for one in made.values()}) == len(made)


def test_an_unknown_runtime_is_refused():
    with pytest.raises(UsageError, match="^runtime: must be one of"):
        runtime("tensorrt")
