"""ONNX files with weights and activations of 8 bits, by the static quantiser of ONNX Runtime."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .exported import ABOUT


def quantise(source: str, path: str, batches: Iterable[Tensor], text: str) -> None:
    """Write an 8-bit copy of an ONNX file.

    Weights have a scale for each output channel, activations one for each tensor, from their smallest and largest
    values on the images (quantize_static of ONNX Runtime; both are signed, with pairs of nodes that quantise and
    dequantise, which runtimes fuse with the layers between).

    Parameters
    ----------
    source : str
        ONNX file in float32 with the input ``images``.
    path : str
        To write.
    batches : iterable of torch.Tensor, shape (B, C, H, W)
        Calibration images, prepared as the network takes them.
    text : str
        JSON text about the network, kept as the metadata property ``decomp``.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory(prefix="decomp-") as folder, _quiet():
        prepared = os.path.join(folder, "prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != ABOUT]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=ABOUT, value=text)
    Path(path).write_bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to its own users, which it gives through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def load(path: str, threads: int) -> tuple[Callable[[Tensor], list[Tensor]], str]:
    """A file as a callable on images, and the JSON text about it.

    The threads stop to spin when a run ends, so that another file can be timed in turn with it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]

    return run, session.get_modelmeta().custom_metadata_map[ABOUT]
