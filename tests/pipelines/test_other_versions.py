"""Warning before any work about libraries whose versions differ from those of an earlier stage."""

import pytest

from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.finetune import finetune
from tests.pipelines import small_runs
from tests.pipelines.digit_runs import Collected

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def pretend(run, stage, **versions):
    """Let a stage have run with other versions; the real ones are given back."""
    config = run.read_config()
    now = dict(config["versions"][stage])
    config["versions"][stage].update(versions)
    run.write_config(config)
    return now


def warnings(reporter):
    return [line for line in reporter.messages if "other versions" in line]


@pytest.mark.fault("other libraries", "versions changed between two stages")
def test_decompose_tells_of_the_versions_that_froze_and_then_of_those_that_began(run):
    now = pretend(run, "freeze", torch="1.0", numpy="1.1")
    first, second, third = Collected(), Collected(), Collected()
    decompose(run, speedup=2.5, plan_only=True, reporter=first)
    words = f"freeze ran with other versions: torch 1.0, now {now['torch']}, numpy 1.1, now {now['numpy']}; numbers"
    assert len(warnings(first)) == 1 and warnings(first)[0].startswith(words)
    decompose(run, speedup=2.5, reporter=second)
    assert warnings(second) == warnings(first)
    # Stopped behind its last layer, and given again with another library.
    (run.model_dir / "structure.json").unlink()
    pretend(run, "decompose", torch="1.2")
    decompose(run, speedup=2.5, reporter=third)
    (line,) = warnings(third)
    assert line.startswith(f"decompose ran with other versions: torch 1.2, now {now['torch']};")


def test_with_the_same_versions_nothing_is_said(run):
    reporter = Collected()
    decompose(run, speedup=2.5, plan_only=True, reporter=reporter)
    assert warnings(reporter) == []


@pytest.mark.fault("other libraries", "versions changed between two stages")
def test_finetune_tells_of_the_versions_that_decomposed(tmp_path):
    run = small_runs.make_run(tmp_path / "run", n_images=60)
    run.update_config("decompose", {})
    pretend(run, "decompose", torch="1.0")
    reporter = Collected()
    finetune(run, epochs=1, reporter=reporter)
    assert len(warnings(reporter)) == 1 and "decompose ran with other versions: torch 1.0" in warnings(reporter)[0]
