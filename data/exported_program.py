"""torch.export programs as networks of layers: their operations on weights become convolutions and other modules."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec, tree_unflatten

from decomp.errors import FileError, TraceError
from decomp.execution.outputs import difference
from decomp.modules.replace import with_parameters

#: Largest difference of the outputs of the network and the program, relative to the largest output.
TOLERANCE = 1e-5
#: Operations that only matter while a network is trained, or for the memory: they pass their input on.
_PASSING = ("dropout", "dropout_", "feature_dropout", "alpha_dropout", "detach", "detach_", "alias",
            "lift_fresh_copy", "_assert_tensor_metadata")  # fmt: skip
#: Names of operations under which torch has them otherwise.
_OPERATORS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}
#: End of a slice that reaches to the end of the axis.
_END = 2**63 - 1
_WAY_OUT = "give the module that was exported instead"


def read(path: str | os.PathLike[str]) -> ExportedProgram:
    """Read a program that ``torch.export.save`` wrote.

    Raises
    ------
    FileError
        The file is missing or holds no such program.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileError(path, "there is no such file", fix="give the path of a torch.export program")
    try:
        return torch.export.load(path)
    except Exception as error:  # of any class: the archive may hold anything
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        fix = "write it again with torch.export.save, with this version of torch"
        raise FileError(path, "cannot be read as a torch.export program", got=reason, fix=fix) from error


def input_shape(program: ExportedProgram) -> tuple[int, int, int] | None:
    """(C, H, W) of the example that the program was exported with; None where its input is no batch of images."""
    arguments, _ = program.example_inputs or ((), {})
    image = next((value for value in arguments if isinstance(value, Tensor)), None)
    if image is None or image.dim() != 4:
        return None
    return int(image.shape[1]), int(image.shape[2]), int(image.shape[3])


def as_network(program: ExportedProgram, name: str) -> fx.GraphModule:
    """The network of a program, with modules in place of the operations that have weights.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        Exported in evaluation mode, with one batch of images as its input.
    name : str
        For messages.

    Returns
    -------
    torch.fx.GraphModule
        In evaluation mode. Modules have the names under which their weights are in the program.

    Raises
    ------
    TraceError
        An operation is not known, or the network gives other outputs than the program.
    """
    exported = program.module()
    assert isinstance(exported, fx.GraphModule)
    network = _Translation(exported, program.call_spec.out_spec, name).network()
    shape = input_shape(program)
    if shape is None:
        raise TraceError(name, "must take one batch of images (N, C, H, W)", fix=_WAY_OUT)
    example = program.example_inputs[0][0]
    assert isinstance(example, Tensor)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(example.shape, generator=generator).to(example.dtype)
    with torch.no_grad():
        wanted = exported(x)
        try:
            same = difference(wanted, network(x)) <= TOLERANCE
        except (RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:100]
            raise TraceError(
                name, f"an operation of this program cannot be followed ({reason})", fix=_WAY_OUT
            ) from error
        if not same:
            raise TraceError(name, "the layers of this program give other outputs than itself", fix=_WAY_OUT)
        for size in (1, len(x) + 1):
            try:
                network(x[:1].expand(size, -1, -1, -1).contiguous())
            except RuntimeError as error:
                rule = f"is a program for batches of {len(x)} images only"
                fix = "export it with dynamic_shapes=({0: torch.export.Dim('batch')},), or " + _WAY_OUT
                raise TraceError(name, rule, fix=fix) from error
    return network


class _Translation:
    """One pass over the operations of a program."""

    def __init__(self, exported: fx.GraphModule, form: TreeSpec, name: str) -> None:
        self.exported, self.form, self.name = exported, form, name
        self.tensors: dict[str, Tensor] = {**dict(exported.named_parameters()), **dict(exported.named_buffers())}
        self.root, self.graph, self.made = nn.Module(), fx.Graph(), dict[fx.Node, Any]()

    def network(self) -> fx.GraphModule:
        """The translated network."""
        for node in self.exported.graph.nodes:
            self.made[node] = self._node(node)
        network = fx.GraphModule(self.root, self.graph)
        network.graph.eliminate_dead_code()
        network.recompile()
        return network.eval()

    def _node(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.graph.placeholder(node.name)
        if node.op == "output":
            # A program gives a flat tuple, which is put into the form of the module's output.
            flat = [self._argument(value) for value in node.args[0]]  # type: ignore[union-attr]
            return self.graph.output(tree_unflatten(flat, self.form))
        if node.op == "get_attr":
            return str(node.target)  # the name of a tensor, until an operation uses it
        if node.op == "call_module":  # the guards of a program check its input
            return None
        if node.target is operator.getitem and self.made[node.args[0]] is not None:  # type: ignore[index]
            return self._getitem(node)
        operation = str(getattr(node.target, "overloadpacket", node.target)).rpartition(".")[2]
        arguments = _in_order(node)
        layer = getattr(self, f"_{operation.lstrip('_')}", None)
        if layer is not None and isinstance(arguments[1], fx.Node) and arguments[1].op == "get_attr":
            return layer(arguments)
        if operation in _PASSING:
            return self._argument(arguments[0])
        if operation == "sym_size":
            shape = self.graph.call_function(getattr, (self._argument(arguments[0]), "shape"))
            return self.graph.call_function(operator.getitem, (shape, arguments[1]))
        return self._function(operation, node)

    def _getitem(self, node: fx.Node) -> Any:
        source, index = node.args
        if "batch_norm" in str(source.target):  # type: ignore[union-attr]
            return self.made[source]  # type: ignore[index]
        return self.graph.call_function(operator.getitem, (self._argument(source), index))

    def _function(self, operation: str, node: fx.Node) -> fx.Node:
        """A call of torch's function of the same name and arguments."""
        base = operation[:-1] if operation.endswith("_") and not operation.endswith("__") else operation
        arguments = tuple(self._argument(value) for value in node.args)
        keywords = {key: self._argument(value) for key, value in node.kwargs.items()}
        if base == "slice":
            x, axis, start, end, step = _in_order(node)
            index = (*[slice(None)] * axis, slice(start, None if end == _END else end, step))
            return self.graph.call_function(operator.getitem, (self._argument(x), self._argument(index)))
        if base.startswith("upsample_"):
            return self._resized(base, node)
        if base in _OPERATORS and not keywords:
            return self.graph.call_function(_OPERATORS[base], arguments)
        for place in (nn.functional, torch):
            function = getattr(place, base, None)
            if callable(function):
                return self.graph.call_function(function, arguments, keywords)
        if hasattr(Tensor, base):
            return self.graph.call_method(base, arguments, keywords)
        raise TraceError(self.name, "has an operation that is not known", got=str(node.target), fix=_WAY_OUT)

    def _resized(self, operation: str, node: fx.Node) -> fx.Node:
        """An interpolation to a size or by a factor."""
        x, size, *more = _in_order(node)
        scale = next((value for value in more if isinstance(value, (list, tuple))), None)
        corners = next((value for value in more if isinstance(value, bool)), None)
        mode = operation.removeprefix("upsample_").removesuffix("2d")
        size = None if scale is not None else self._argument(size)
        options = {"size": size, "scale_factor": scale, "mode": mode, "align_corners": corners}
        return self.graph.call_function(nn.functional.interpolate, (self._argument(x),), options)

    def _argument(self, value: Any) -> Any:
        """An argument of the program in the network; a tensor that no layer took is read as a constant of it."""
        if isinstance(value, fx.Node):
            made = self.made[value]
            return self._tensor(made) if isinstance(made, str) else made
        if isinstance(value, (list, tuple)):
            return type(value)(self._argument(entry) for entry in value)
        if isinstance(value, slice):
            return slice(*(self._argument(entry) for entry in (value.start, value.stop, value.step)))
        return value

    def _tensor(self, path: str) -> fx.Node:
        name = path.replace(".", "_")
        if not hasattr(self.root, name):
            self.root.register_buffer(name, self.tensors[path].detach().clone())
        return self.graph.get_attr(name)

    # -- layers ------------------------------------------------------------------------------------------------

    def _weight(self, node: Any) -> Tensor | None:
        return None if node is None else self.tensors[self.made[node]]

    def _call(self, module: nn.Module, weight: fx.Node, source: Any) -> fx.Node:
        """Add a module under the name of its weight, and a call of it."""
        path = self.made[weight].rpartition(".")[0] or self.made[weight]
        if dict(self.root.named_modules()).get(path) is not None and path:
            path = f"{path}_{sum(1 for _ in self.graph.nodes)}"
        holder: nn.Module = self.root
        *parents, last = path.split(".")
        for parent in parents:
            if parent not in holder._modules:
                holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        holder.add_module(last, module)
        return self.graph.call_module(path, (self._argument(source),))

    def _conv2d(self, arguments: list[Any]) -> fx.Node:
        x, weight, bias, stride, padding, dilation, groups = _filled(arguments, None, None, None, 1, 0, 1, 1)
        return self._convolution_of(x, weight, bias, stride, padding, dilation, groups)

    def _convolution(self, arguments: list[Any]) -> fx.Node:
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = arguments
        if transposed:
            return self._transposed(x, weight, bias, stride, padding, output_padding, groups, dilation)
        return self._convolution_of(x, weight, bias, stride, padding, dilation, groups)

    def _conv_transpose2d(self, arguments: list[Any]) -> fx.Node:
        filled = _filled(arguments, None, None, None, 1, 0, 0, 1, 1)
        return self._transposed(*filled)

    def _convolution_of(
        self, x: Any, weight: fx.Node, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> fx.Node:
        values = self._weight(weight)
        assert values is not None
        module = nn.Conv2d(
            values.shape[1] * groups, len(values), _pair(values.shape[2:]), _pair(stride),
            padding if isinstance(padding, str) else _pair(padding), _pair(dilation), groups, bias is not None,
        )  # fmt: skip
        return self._call(with_parameters(module, values, self._weight(bias)), weight, x)

    def _transposed(
        self, x: Any, weight: fx.Node, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: int,
        dilation: Any,
    ) -> fx.Node:  # fmt: skip
        values = self._weight(weight)
        assert values is not None
        module = nn.ConvTranspose2d(
            len(values), values.shape[1] * groups, _pair(values.shape[2:]), _pair(stride), _pair(padding),
            _pair(output_padding), groups, bias is not None, _pair(dilation),
        )  # fmt: skip
        return self._call(with_parameters(module, values, self._weight(bias)), weight, x)

    def _linear(self, arguments: list[Any]) -> fx.Node:
        x, weight, bias = _filled(arguments, None, None, None)
        values = self._weight(weight)
        assert values is not None
        module = nn.Linear(values.shape[1], values.shape[0], bias is not None)
        return self._call(with_parameters(module, values, self._weight(bias)), weight, x)

    def _batch_norm(self, arguments: list[Any]) -> fx.Node:
        x, weight, bias, mean, variance, training, momentum, eps = arguments[:8]
        if training or mean is None:
            rule = "was exported in training mode: its batch normalisations use the statistics of the batch"
            raise TraceError(self.name, rule, fix="call model.eval() before torch.export.export, or " + _WAY_OUT)
        return self._normalisation(x, weight, bias, mean, variance, momentum, eps)

    def _native_batch_norm_legit_no_training(self, arguments: list[Any]) -> fx.Node:
        return self._normalisation(*arguments[:7])

    def _normalisation(
        self, x: Any, weight: Any, bias: Any, mean: fx.Node, variance: fx.Node, momentum: float, eps: float
    ) -> fx.Node:
        values = self._weight(mean)
        assert values is not None
        shape = x.meta["val"].shape if "val" in x.meta else (0,) * 4
        kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
        module = kind(len(values), eps, momentum, affine=weight is not None)
        tensors = {"running_mean": mean, "running_var": variance, "weight": weight, "bias": bias}
        state = {key: self._weight(node) for key, node in tensors.items() if node is not None}
        module.load_state_dict(state, strict=False)
        return self._call(module.to(values.dtype), mean, x)


def _in_order(node: fx.Node) -> list[Any]:
    """The arguments of an operation by their places, keywords and defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return list(node.args)
    places = [entry for entry in schema.arguments]
    given = list(node.args)
    given += [node.kwargs.get(entry.name, entry.default_value) for entry in places[len(given) :]]
    return given + [None] * (2 - len(given))


def _filled(arguments: list[Any], *defaults: Any) -> list[Any]:
    return [*arguments, *defaults[len(arguments) :]][: len(defaults)]


def _pair(value: int | Iterable[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))
