"""Packaging: files of an installation, which works in a folder with its own data/, pipelines/ and cli.py."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("decomp", "data", "pipelines")


def command(*arguments, cwd, **environment):
    result = subprocess.run(
        arguments, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "", **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the product's files: building leaves files behind, which must not land in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    ignore = shutil.ignore_patterns("__pycache__", "*.part-*")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=ignore)
    for name in ("cli.py", "setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def build(source, kind, folder):
    pytest.importorskip("setuptools", minversion="70.1")
    command(sys.executable, "setup.py", "-q", kind, "-d", str(folder), cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, "bdist_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    command(sys.executable, *install, cwd=folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    """A user's project with files of the same names as ours."""
    for room in ("data", "pipelines"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "cli.py").write_text("raise SystemExit('the wrong one')")
    return tmp_path


def shipped():
    """Expected path of each file in an installation."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            inner = path.relative_to(ROOT / room).as_posix()
            if path.suffix in (".py", ".typed", ".safetensors", ".css", ".js") or (
                path.suffix == ".json" and room == "data"
            ):
                if not path.name.startswith("."):
                    yield f"decomp/{inner}" if room == "decomp" else f"decomp/{room}/{inner}"
    yield "decomp/cli.py"


def test_a_wheel_holds_every_file_and_nothing_at_the_top(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(shipped())


def test_a_wheel_out_of_a_source_archive_is_the_same(source, wheel, tmp_path):
    archive = build(source, "sdist", tmp_path / "sdist")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build(unpacked, "bdist_wheel", tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_the_installed_command_is_not_misled_by_a_project_with_our_names(installed, elsewhere):
    code = (
        "import sys; sys.argv[1:] = ['train', '--help']\n"
        "import decomp.data, decomp.data.formats.json_files, decomp.cli, decomp\n"
        "files = [m.__file__ for m in (decomp, decomp.cli, decomp.data, decomp.data.formats.json_files)]\n"
        "assert all(f.startswith(sys.path[1]) for f in files), files\n"
        "decomp.cli.main()"
    )
    shown = command(sys.executable, "-c", code, cwd=elsewhere, PYTHONPATH=str(installed))
    assert "Usage: decomp train" in shown or "train [OPTIONS]" in shown


def test_the_entry_point_is_installed(installed, elsewhere):
    (script,) = (installed / "bin").iterdir()
    assert script.name == "decomp"
    shown = command(sys.executable, str(script), "--version", cwd=elsewhere, PYTHONPATH=str(installed))
    version = re.search(r'__version__ = "(.*)"', (ROOT / "decomp" / "__init__.py").read_text())[1]
    assert shown == f"decomp {version}\n"


def test_the_checkout_works_from_another_folder_without_hiding_its_names(elsewhere):
    (elsewhere / "data" / "__init__.py").write_text("def images():\n    raise RuntimeError('reached')")
    arguments = ["freeze", "--model", "data:images", "--data", "digits", "--run", "run"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 1 and "RuntimeError: reached" in result.stderr


def test_the_readme_has_its_two_marked_commands():
    blocks = re.findall(r"^```bash\n# (demo|test)\n(.+)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _ in blocks) == ["demo", "test"]
    assert all(line.startswith("python3 -m venv .venv && ") for _, line in blocks)
