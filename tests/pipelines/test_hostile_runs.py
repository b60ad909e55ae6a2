"""A run directory that somebody else made: nothing in it is executed, and nothing in it leads outside."""

import json
import shutil

import h5py
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from decomp.data.formats.json_files import MAX_JSON_DEPTH
from decomp.data.formats.layer_file import _content_digest
from decomp.pipelines.run.directory import RunDirectory
from tests.pipelines.forked import NETWORK, results

PAYLOAD = "open({path!r}, 'w').close()\n"


@pytest.fixture
def sent(stages, whole):
    """A copy of a whole run, and the file that a payload would make."""
    run, proof = stages.folder / "sent", stages.folder / "ran"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(stages.folder / "whole", run)
    shutil.rmtree(run / "model")
    proof.unlink(missing_ok=True)
    return run, proof


def asks_for(run, **values):
    """Write it into run.json, sealed as if it were genuine."""
    run = RunDirectory(run)
    config = run.read_config()
    config["stages"]["freeze"]["asked"].update(values)
    run.write_config(config)


@pytest.mark.fault("hostile run", "code inside the run directory, named as its model or images")
@pytest.mark.parametrize(("key", "stage"), [("model", "decompose"), ("data", "finetune"), ("data", "freeze")])
@pytest.mark.parametrize("written", ["sent/evil.py:build", "{run}/evil.py:build", "sent/layers/../evil.py:build"])
def test_code_in_a_run_directory_is_not_run(stages, sent, key, stage, written):
    run, proof = sent
    (run / "evil.py").write_text(PAYLOAD.format(path=str(proof)) + NETWORK)
    exec(compile((run / "evil.py").read_text(), "evil.py", "exec"), {})
    assert proof.exists()  # so it would run
    proof.unlink()
    asks_for(run, **{key: written.format(run=run)})
    ended = stages.start(stage, run)
    *_, line = ended.text.strip().splitlines()
    assert ended.code == 1 and "code in a run directory is not executed" in line and "Traceback" not in ended.text
    assert not proof.exists()


@pytest.mark.fault("hostile run", "the same through a link")
def test_a_link_in_a_run_directory_does_not_lead_code_in(stages, sent):
    run, proof = sent
    (run / "evil.py").write_text(PAYLOAD.format(path=str(proof)) + NETWORK)
    link = stages.folder / "harmless.py"
    link.unlink(missing_ok=True)
    link.symlink_to(run / "evil.py")
    asks_for(run, model="harmless.py:build")
    ended = stages.start("decompose", run)
    assert ended.code == 1 and "is not executed" in ended.text and not proof.exists()


def rewritten(path, change):
    """Rewrite a layer file with another header, its digest right."""
    with safe_open(str(path), "pt") as file:
        header, tensors = json.loads(file.metadata()["decomp"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    header.pop("content")
    change(header)
    header["content"] = _content_digest(header, tensors)
    save_file(tensors, str(path), metadata={"decomp": json.dumps(header)})


@pytest.mark.fault("hostile file", "a genuine-looking layer file for another layer")
@pytest.mark.parametrize("name", ["../../outside", "9", ""])
def test_a_layer_file_for_another_layer_is_refused(stages, sent, name):
    run, _ = sent
    rewritten(run / "layers" / "000_0.safetensors", lambda header: header.update(layer=name))
    ended = stages.start("decompose", run)
    assert ended.code == 1 and "000_0.safetensors: must hold layer 0, got" in ended.text, ended.text
    assert not (stages.folder / "outside").exists()


@pytest.mark.fault("hostile file", "an HDF5 link that leads to another file")
def test_points_that_lie_in_another_file_are_refused(stages, sent):
    run, _ = sent
    secret = stages.folder / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["images"] = [1.0]
    with h5py.File(run / "frozen.h5", "r+") as file:
        del file["images"]
        file["images"] = h5py.ExternalLink(str(secret), "images")
    ended = stages.start("decompose", run)
    assert ended.code == 1 and "images leads elsewhere" in ended.text and "run freeze again" in ended.text


@pytest.mark.fault("hostile file", "JSON of 200 levels")
def test_deep_json_is_refused_wherever_it_is_read(stages, sent, record_property):
    run, _ = sent
    deep = "[" * 200 + "]" * 200
    for name, stage in (("plan.json", "decompose"), ("original/structure.json", "decompose"), ("run.json", "finetune")):
        good = (run / name).read_text()
        (run / name).write_text('{"deep": ' + deep + "}")
        ended = stages.start(stage, run)
        assert ended.code == 1 and f"at most {MAX_JSON_DEPTH} levels deep" in ended.text, ended.text
        (run / name).write_text(good)
    record_property("times", 3)
    assert stages.start("decompose", run).code == 0
    assert results(run).keys() == results(stages.folder / "whole").keys()
