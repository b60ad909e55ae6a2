"""ONNX graphs of chains of convolutions, linear layers, selections, rectifiers and pooling, without torch's exporter.

The exporter takes about a second for the smallest graph, and a plan by latency needs hundreds of small ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from decomp.modules.select import Select

#: Version of the operators, which every supported version of ONNX Runtime has.
OPSET, IR = 17, 8


def has_direct_graph(module: nn.Module, example: Tensor) -> bool:
    """Whether :func:`direct_graph` can write a module for a batch such as the example."""
    parts = list(_parts(module))
    linear = any(isinstance(part, nn.Linear) for part in parts)
    return all(_is_known(part) for part in parts) and (example.dim() == 2 or not linear)


def _is_known(part: nn.Module) -> bool:
    if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
        return part.padding_mode == "zeros" and not isinstance(part.padding, str)
    if type(part) is nn.AdaptiveAvgPool2d:
        return part.output_size in (1, (1, 1))
    return type(part) in (nn.ReLU, nn.Linear, nn.Identity, Select)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for part in module:
            yield from _parts(part)
    else:
        yield module


def direct_graph(module: nn.Module, example: Tensor) -> bytes:
    """The bytes of an ONNX graph of a chain, with the fixed shape of the example and float32 weights.

    Parameters
    ----------
    module : torch.nn.Module
        Of which :func:`has_direct_graph` is true.
    example : Tensor
        Shape (m, C, H, W), or (m, C) where all parts are linear layers.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "images"
    for place, part in enumerate(_parts(module)):
        if isinstance(part, nn.Identity):
            continue
        inputs, name = [last], f"part{place}"
        for key, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            weights.append(numpy_helper.from_array(value.detach().cpu().numpy(), f"{name}.{key}"))
            inputs.append(f"{name}.{key}")
        operation, attributes = _operation(part)
        nodes.append(helper.make_node(operation, inputs, [name], name=name, **attributes))
        last = name
    nodes.append(helper.make_node("Identity", [last], ["outputs"]))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, list(example.shape))
    outputs = helper.make_tensor_value_info("outputs", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "chain", [images], [outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return bytes(model.SerializeToString())


def _operation(part: nn.Module) -> tuple[str, dict[str, Any]]:
    """Operator and attributes of one part."""
    if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
        padding = [int(n) for n in part.padding]
        attributes = {
            "kernel_shape": part.kernel_size, "strides": part.stride, "dilations": part.dilation,
            "pads": padding * 2, "group": part.groups,
        }  # fmt: skip
        if isinstance(part, nn.Conv2d):
            return "Conv", attributes
        return "ConvTranspose", {**attributes, "output_padding": part.output_padding}
    if isinstance(part, nn.Linear):
        return "Gemm", {"transB": 1}
    if isinstance(part, Select):
        return "Gather", {"axis": 1}
    return ("Relu" if isinstance(part, nn.ReLU) else "GlobalAveragePool"), {}
