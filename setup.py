"""Packaging. `data/`, `pipelines/` and `cli.py` lie at the top of a checkout but are installed inside `decomp`."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "decomp" / "__init__.py").read_text(), re.MULTILINE)[1]

FOLDERS = {"decomp": "decomp", "decomp.data": "data", "decomp.pipelines": "pipelines"}
PACKAGES = [
    package
    for top, folder in FOLDERS.items()
    for package in (top, *(f"{top}.{inner}" for inner in find_packages(str(HERE / folder))))
]


class BuildWithDoor(build_py):
    """Also put cli.py, a module outside every package folder, into the package."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        if package == "decomp" and not any(module == "cli" for _, module, _ in modules):
            modules.append(("decomp", "cli", "cli.py"))
        return modules


setup(
    name="decomp",
    version=VERSION,
    description="Make a trained convolutional network several times cheaper, layer by layer, without training",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=PACKAGES,
    package_dir=FOLDERS,
    package_data={
        "decomp": ["py.typed"],
        "decomp.pipelines": ["reporting/page.*"],
        "decomp.data": ["zoo/*.safetensors", "zoo/*.json"],
    },
    cmdclass={"build_py": BuildWithDoor},
    entry_points={"console_scripts": ["decomp = decomp.cli:main"]},
    # The lower bounds are versions that the tests were run with, on Python 3.10.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "scipy>=1.11.1",
        "scikit-learn>=1.3",
        "h5py>=3.10",
        "joblib>=1.3",
        "click>=8.1",
        "safetensors>=0.4.3",
        "filelock>=3.12",
        "tqdm>=4.65",
        "pillow>=9.4",
        "matplotlib>=3.8",
    ],
    extras_require={
        # ruff and mypy find other things from one minor version to the next
        "test": [
            "pytest>=8",
            "hypothesis>=6.100",
            "ruff==0.17.*",
            "mypy==2.4.*",
            "setuptools>=70.1",
            "webdataset>=1.0.2",
        ],  # fmt: skip
        "timm": ["timm>=1.0.3"],
        # the newest PyTorch exports with these, and with nothing older of onnxscript
        "export": ["onnx>=1.17", "onnxruntime>=1.20.1", "onnxscript>=0.6"],
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20.1", "onnxscript>=0.6"],
        "openvino": ["openvino>=2024.4"],
        "webdataset": ["webdataset>=1.0.2"],
        "tensorboard": ["tensorboard>=2.17.1"],
    },
)
