"""Symbolic tracer that looks into all modules except torch.nn's, and answers questions that the image size decides."""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.proxy import Attribute

from decomp.graph.autocast import without_autocast
from decomp.graph.changes_in_place import OPERATORS, Call, Changes, without_change
from decomp.graph.exchanged_names import SEQUENCES, names_exchanged, proxies_in
from decomp.graph.object_forwards import has_own_forward
from decomp.graph.size_branches import SIZE_METHODS, SizeBranches
from decomp.graph.value_checks import passing_answer
from decomp.graph.views import is_number
from decomp.modules.entries import with_entries
from decomp.modules.select import Select
from decomp.modules.zeros import Zeros


class SizedProxy(fx.Proxy):
    """Proxy that is also a number, or has a length, where the size of the images decides that."""

    tracer: SizedTracer

    def __getattr__(self, name: str) -> Any:
        # numpy asks for these, and for `prod` of a size, and takes whatever it gets.
        if name.startswith("__array") or str(sys._getframe(1).f_globals.get("__name__")).startswith("numpy."):
            raise AttributeError(name)
        if name == "data":  # the same without gradients
            return self if self.weight is not None else self.tracer.create_proxy("call_method", "detach", (self,), {})
        if name in ("shape", "ndim") and self.weight is not None:
            return getattr(self.weight, name)
        return SizedAttribute(self, name)

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight that the proxy stands for: its sizes are constants, whatever becomes of its layer."""
        return None if self.node.op != "get_attr" else self.tracer.tensor(str(self.node.target))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.set_entries(self, index, value)

    def __len__(self) -> int:
        if self.weight is not None:
            return len(self.weight)
        return self.tracer.length(self.node, "; write x.shape[0] for the number of images")

    def __int__(self) -> int:
        return int(self.tracer.number(self.node, "int"))

    def __float__(self) -> float:
        return float(self.tracer.number(self.node, "float"))

    def __index__(self) -> int:
        number = self.tracer.number(self.node, "range or an index", asked_by=sys._getframe(1))
        if not isinstance(number, int):
            raise TypeError(f"{number} cannot be used as an index")
        return number

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.tracer.number(self.node, "numpy"), dtype=dtype)

    def __round__(self, digits: int | None = None) -> fx.Proxy:
        args = (self,) if digits is None else (self, digits)
        return self.tracer.create_proxy("call_function", round, args, {})

    def __floor__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})

    def __ceil__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __trunc__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.trunc, (self,), {})

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    @classmethod
    def __torch_function__(
        cls,
        orig_method: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Proxy:
        # Torch has asked the arguments for integers to find out whether they are some; the graph keeps the proxies.
        asked_by = sys._getframe(1)
        for tracer in {p.tracer for p in proxies_in((args, kwargs)) if isinstance(p, SizedProxy)}:
            tracer.forget_integers(asked_by)
        return fx.Proxy.__torch_function__(orig_method, types, args, kwargs)


class SizedAttribute(SizedProxy, Attribute):
    """The same for an attribute of a proxy, such as `x.shape`."""


def _changing(name: str, function: Callable[[Any, Any], Any]) -> Callable[[SizedProxy, Any], Any]:
    """The operator `name`: a tensor is changed in place, a size and a tuple become others."""

    def change(proxy: SizedProxy, other: Any) -> Any:
        if isinstance(other, (tuple, list)) or isinstance(proxy, Attribute) or is_number(proxy.node):
            return function(proxy, other)
        return proxy.tracer.change_by_operator(proxy, name, function, other)

    return change


for _name, _function in OPERATORS.items():
    setattr(SizedProxy, _name, _changing(_name, _function))


class SizedTracer(fx.Tracer):
    """Tracer whose leaves are the modules of torch.nn and the named ones; it looks into all others.

    Parameters
    ----------
    leaves : iterable of str
    shape : sequence of int, optional
        (C, H, W) of the images. With it, branches, numbers and numbers of parts that depend on sizes are those of
        images of that shape.
    copy_of : torch.nn.Module, optional
        Network whose copy is traced: where a function refers to modules of it, those of the copy are meant.

    Attributes
    ----------
    branches : dict of str
        Places in the source ('file.py:line') where a size has decided.
    within : list of str
        Paths of the modules whose forward runs; after an exception, of those that it occurred in.
    autocast : bool
        Whether automatic mixed precision was passed over.
    """

    def __init__(
        self, leaves: Iterable[str] = (), shape: Sequence[int] | None = None, copy_of: nn.Module | None = None
    ):
        super().__init__(autowrap_functions=SEQUENCES, param_shapes_constant=True)
        self.leaves, self.shape = frozenset(leaves), shape
        self.branches: dict[str, None] = {}
        self.within: list[str] = []
        self.autocast = False
        self._integers: dict[tuple[object, int], str] = {}
        self._sizes: SizeBranches | None = None
        self._changes = Changes(self)
        self._foreign: dict[int, torch.Tensor] = {}
        self._originals = {} if copy_of is None else {module: path for path, module in copy_of.named_modules()}
        self._evaluating = False
        self._exchanged_names = ExitStack()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of the calls of a module."""
        with names_exchanged(self), without_autocast() as passed_over, self._exchanged_names:
            self._answer_isinstance(root)
            self._exchanged_names.callback(setattr, torch, "is_tensor", torch.is_tensor)
            torch.is_tensor = lambda value: self._isinstance(value, torch.Tensor)  # type: ignore[assignment]
            graph = super().trace(root, concrete_args)
        for node in graph.nodes:
            if node.target in SEQUENCES:
                node.meta.pop("is_wrapped", None)  # the code of the graph has them from torch itself
        self._changes.check()
        self.autocast = next((p.device.type for p in root.parameters()), "cpu") in passed_over
        self.branches.update(dict.fromkeys(self._integers.values()))
        return graph

    def proxy(self, node: fx.Node) -> SizedProxy:
        """A proxy of this tracer's kind."""
        return SizedProxy(node, self)

    # -- questions that the image size decides -------------------------------------------------------------

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The answer to a condition."""
        answer = self._asked(lambda sizes: sizes.evaluate(obj.node))
        if answer is None:
            answer = passing_answer(sys._getframe())
            return super().to_bool(obj) if answer is None else answer
        self._note(obj.node)
        return answer

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a value, each as a call of getitem."""
        assert isinstance(obj, SizedProxy)
        n = self.length(obj.node) if obj.weight is None else len(obj.weight)
        return iter([obj[i] for i in range(n)])  # type: ignore[index]

    def length(self, node: fx.Node, advice: str = "") -> int:
        """The number of parts of a value.

        Parameters
        ----------
        node : torch.fx.Node
        advice : str
            For the message.

        Raises
        ------
        RuntimeError
            It depends on values, or on the number of images.
        """
        length = self._asked(lambda sizes: sizes.length(node))
        if length is None:
            raise RuntimeError(f"the number of parts of '{node.name}' is not fixed by the size of the images{advice}")
        if self._sizes is not None and self._sizes.length_depends_on_size(node):
            self.branches[source_place(traceback.extract_stack())] = None
        return length

    def number(self, node: fx.Node, use: str, asked_by: FrameType | None = None) -> Any:
        """The number, or tuple of numbers, that a value is.

        Parameters
        ----------
        node : torch.fx.Node
        use : str
            For the message.
        asked_by : frame, optional
            Of the call that asks for an integer, see :meth:`forget_integers`.

        Raises
        ------
        TypeError
            It depends on values, or on the number of images.
        """
        number = self._asked(lambda sizes: sizes.number(node))
        if number is None:
            raise TypeError(f"'{node.name}', taken as a number by {use}, is not fixed by the size of the images")
        if asked_by is None:
            self._note(node)
        elif self._sizes is not None and self._sizes.depends_on_size(node):
            self._integers[asked_by.f_code, asked_by.f_lasti] = source_place(traceback.extract_stack())
        return number

    def _note(self, node: fx.Node) -> None:
        """Note the place in the source where an answer holds for images of this size only."""
        if self._sizes is not None and self._sizes.depends_on_size(node):
            self.branches[source_place(traceback.extract_stack())] = None

    def _isinstance(self, value: object, classes: Any) -> bool:
        """`isinstance` of what a proxy stands for."""
        node = value.node if isinstance(value, SizedProxy) else None
        found = None if node is None else self._asked(lambda sizes: sizes.type_of(node))
        return isinstance(value, classes) if found is None else issubclass(found, classes)

    def _answer_isinstance(self, module: nn.Module) -> None:
        """Exchange the name in the file of a module's forward: the class of a proxy itself must stay what it is."""
        names = getattr(inspect.unwrap(type(module).forward), "__globals__", {})
        if "isinstance" not in names:
            names["isinstance"] = self._isinstance
            self._exchanged_names.callback(names.pop, "isinstance")

    def forget_integers(self, asked_by: FrameType) -> None:
        """The integers that this call has asked for are not in the graph."""
        self._integers.pop((asked_by.f_code, asked_by.f_lasti), None)

    def _asked(self, question: Callable[[SizeBranches], Any]) -> Any:
        if self.shape is None or self._evaluating:
            return None
        self._sizes = self._sizes or SizeBranches(self.root, self.shape)
        self._evaluating = True
        try:
            return question(self._sizes)
        finally:
            self._evaluating = False

    # -- recording -----------------------------------------------------------------------------------------

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        """A recorded call, without changes in place; the answer itself where a weight is asked for its size."""
        weight = args[0].weight if args and isinstance(args[0], SizedProxy) else None
        if weight is not None and (kind == "call_method" and target in SIZE_METHODS or target is torch.numel):
            return (getattr(weight, target) if kind == "call_method" else target)(
                *([] if kind == "call_method" else [weight]), *args[1:], **kwargs
            )
        call = None if self._evaluating else without_change(kind, target, args, kwargs)
        if call is not None:
            return self._changes.follow(call)
        made = self.plain_proxy(kind, target, args, kwargs, *more, **named)
        if target is operator.getitem and type(args[0]) is SizedProxy:
            self._changes.note_view(made, *args)
        return made

    def plain_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """A recorded call."""
        return super().create_proxy(*args, **kwargs)

    def set_entries(self, proxy: SizedProxy, index: Any, value: Any) -> None:
        """`x[index] = value`: from here on, the proxy stands for the changed tensor."""
        self.change_by_operator(proxy, "x[...] = y", with_entries, index, value)

    def change_by_operator(self, proxy: SizedProxy, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Let a proxy stand for what a function makes of it."""
        return self._changes.follow(Call(proxy, "call_function", function, (proxy, *args), {}, name))

    def tensor(self, path: str) -> torch.Tensor:
        """The parameter at a path."""
        holder, _, name = path.rpartition(".")
        found = self.root.get_submodule(holder)._parameters[name]  # another access gives a proxy
        assert found is not None
        return found

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether a node is known to give a tensor."""
        found = self._asked(lambda sizes: sizes.type_of(node))
        return found is not None and issubclass(found, torch.Tensor)

    def place(self) -> str:
        """'file.py:line' of the forward pass that runs."""
        return source_place(traceback.extract_stack())

    def create_arg(self, a: Any) -> Any:
        """An argument as the graph holds it: containers of other classes become tuples and dicts."""
        if type(a) in (SizedProxy, SizedAttribute):
            return a.node
        if isinstance(a, nn.Parameter) and not any(a is own for own in self.root.parameters()):
            a = self._foreign.setdefault(id(a), a.detach())  # of an object that the network does not hold: a constant
        if isinstance(a, tuple) and type(a) is not tuple:  # namedtuple, torch.Size
            a = tuple(a)
        elif dataclasses.is_dataclass(a) and not isinstance(a, (type, Mapping)):
            a = {field.name: getattr(a, field.name) for field in dataclasses.fields(a)}
        elif isinstance(a, range):
            a = list(a)
        elif isinstance(a, np.generic):
            a = a.item()
        elif type(a) is type(torch.FloatTensor):  # a name of the type of before
            a = a.dtype
        return super().create_arg(a)

    # While a question is answered, modules run and are not recorded.
    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The recorded call of a leaf, or what forward gives for another module."""
        # What a module does that forward has made, such as a slice of an nn.Sequential, is recorded as of a function.
        if self._evaluating or m not in (self.submodule_paths or {}):
            return forward(*args, **kwargs)
        self.within.append(self.path_of_module(m))
        if not self.is_leaf_module(m, self.within[-1]):
            self._answer_isinstance(m)
        result = super().call_module(m, forward, args, kwargs)
        self.within.pop()
        read = args[0] if args else kwargs.get("input")
        if getattr(m, "inplace", False) is True and type(read) is SizedProxy and isinstance(result, SizedProxy):
            return self._changes.replace(read, result, type(m).__name__, {})
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter that forward reads as a proxy."""
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Only parameters without a default become inputs: the others take their defaults while tracing.

        With an input in their place, `if mask is None` would be answered for a mask that nobody gives.
        """
        parameters = list(inspect.signature(inspect.unwrap(root_fn)).parameters.values())[1:]
        needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if not needed:  # `forward(pixel_values=None, labels=None)`
            needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:1]
        if any(p.kind is p.KEYWORD_ONLY for p in needed):
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        return root_fn, [self.root, *(self.create_proxy("placeholder", p.name, (), {}) for p in needed)]

    def path_of_module(self, mod: nn.Module) -> str:
        """Path of a module of the network, or of the one that it is a copy of."""
        return self._originals.get(mod) or super().path_of_module(mod)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as it is."""
        if module_qualified_name in self.leaves or isinstance(m, (Select, Zeros)):
            return True
        return super().is_leaf_module(m, module_qualified_name) and not has_own_forward(m)


def source_place(stack: Iterable[traceback.FrameSummary]) -> str:
    """'file.py:line' of the deepest frame that is neither torch's nor of this folder, or ''."""
    own = os.path.dirname(__file__)
    frames = [f for f in stack if "/torch/" not in f.filename.replace("\\", "/")]
    frames = [f for f in frames if os.path.dirname(f.filename) != own and not f.filename.startswith("<")]
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
