"""Changes in place, recorded as calls that give new tensors: the changed tensor's name means the new one from there on.

After ``r = q`` and ``q.mul_(2)``, both names stand for what `mul` gives. A view that is changed is written back into
the tensor that it was taken from: ``q[:, :4].zero_()`` gives a new `q`.
"""

from __future__ import annotations

import inspect
import operator
import re
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.proxy import Attribute

from decomp.graph.views import read_after_change, takes_a_view
from decomp.modules.entries import with_entries

#: Operators that `q += 1` and the like stand for.
OPERATORS = {
    f"__i{name}__": getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift", "xor")
} | {"__iand__": operator.and_, "__ior__": operator.or_}  # fmt: skip
_SYMBOLS = {
    "__iadd__": "+=", "__isub__": "-=", "__imul__": "*=", "__itruediv__": "/=", "__ifloordiv__": "//=",
    "__imod__": "%=", "__ipow__": "**=", "__imatmul__": "@=", "__iand__": "&=", "__ior__": "|=", "__ixor__": "^=",
}  # fmt: skip
_NEW = "let forward make a new tensor and read that (y = x * 2 in place of x.mul_(2) or x *= 2)"
_CHANGE = re.compile("[^_]_$")
# Methods of such a name that leave the values as they are.
_NO_CHANGE = ("requires_grad_", "detach_", "share_memory_")
_SET = ("zero_", "fill_", "copy_")


class NotFollowed(RuntimeError):
    """A forward pass that cannot be traced.

    Parameters
    ----------
    reason : str
    fix : str
        What to change in forward.
    place : str
        'file.py:line'; '' where the place of the exception is meant.
    within : sequence of str
        Paths of the modules whose forward ran there.
    """

    def __init__(self, reason: str, fix: str = "", place: str = "", within: tuple[str, ...] = ()):
        super().__init__(reason)
        self.fix, self.place, self.within = fix, place, within


@dataclass
class Call:
    """A call without a change in place, the argument that the call given changes, and the name of that.

    Where it may stay, the call given may be in the graph as it is.
    """

    changed: Any
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    may_stay: bool = False


@dataclass
class Change:
    """A change that was recorded.

    Attributes
    ----------
    before, after : torch.fx.Node
    name : str
        Of the call.
    place : str
        'file.py:line'.
    within : tuple of str
        Paths of the modules whose forward ran.
    stays : dict or None
        Keyword arguments with which the call changes its input in place, where the graph may do so as well.
    write_backs : list of torch.fx.Node
        Calls that write a changed view into its tensor.
    """

    before: fx.Node
    after: fx.Node
    name: str
    place: str
    within: tuple[str, ...]
    stays: dict[str, Any] | None = None
    write_backs: list[fx.Node] = field(default_factory=list)


def without_change(kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The call that gives as a new tensor what a call changes in place; None where it changes nothing.

    Parameters
    ----------
    kind : {'call_method', 'call_function', ...}
    target, args, kwargs
        As of a node of a graph; the arguments may be proxies.
    """
    if kind == "call_method" and _CHANGE.search(target) and args:
        return _method(target, args, kwargs)
    if kind != "call_function":
        return None
    name, plain = str(getattr(target, "__name__", "")), {k: v for k, v in kwargs.items() if k != "out"}
    if kwargs.get("out") is not None:
        return Call(kwargs["out"], kind, target, args, plain, name)
    if _CHANGE.search(name) and args:
        same = getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)
        return None if same is None else Call(args[0], kind, same, args, kwargs, name)
    place = _place_of_inplace(target)
    if place is None or (args[place] if place < len(args) else kwargs.get("inplace")) is not True:
        return None
    plain.pop("inplace", None)
    return Call(args[0] if args else kwargs["input"], kind, target, args[:place], plain, name, may_stay=True)


def _method(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    if name in _NO_CHANGE:
        return Call(args[0], "", None, args, kwargs, name)
    if name in _SET:
        value = 0 if name == "zero_" else [*args[1:], *kwargs.values()][0]
        return Call(args[0], "call_function", with_entries, (args[0], ..., value), {}, name)
    if callable(getattr(Tensor, name[:-1], None)):
        return Call(args[0], "call_method", name[:-1], args, kwargs, name)
    return Call(args[0], "call_method", name, args, kwargs, name)


def _place_of_inplace(function: Any) -> int | None:
    """Place of the argument `inplace` of a function of torch.nn.functional, where it comes last."""
    if getattr(function, "__module__", None) != F.__name__:
        return None
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names[-1:] else None


class Changes:
    """The changes in place of one trace.

    Parameters
    ----------
    tracer : decomp.graph.tracer.SizedTracer
    """

    def __init__(self, tracer: Any):
        self.tracer = tracer
        self.all: list[Change] = []

    def note_view(self, proxy: Any, base: Any, index: Any) -> None:
        """Note that a proxy was taken from another by an index, so that a change of it can be written back."""
        if takes_a_view(self.tracer.create_arg(index)):
            proxy.view_of = (base, index, base.node)

    def follow(self, call: Call) -> Any:
        """Record a call, let its changed argument stand for the result, and give that argument."""
        changed = call.changed
        if not call.kind:
            return changed
        self._refuse_state(changed, call.name)
        if call.target == call.name:  # there is no such method without a change
            copy = self.tracer.create_proxy("call_method", "clone", (changed,), {})
            made = self.tracer.plain_proxy(call.kind, call.target, (copy, *call.args[1:]), call.kwargs)
        else:
            made = self.tracer.create_proxy(call.kind, call.target, call.args, call.kwargs)
        return self.replace(changed, made, call.name, {"inplace": True} if call.may_stay else None)

    def replace(self, proxy: Any, made: Any, name: str, stays: dict[str, Any] | None = None) -> Any:
        """Let a proxy stand for the tensor that a call has made of it, and write views back."""
        if isinstance(proxy, Attribute):  # x.data, x.T
            raise NotFollowed(f"'{name}' changes an attribute of a tensor in place", _NEW)
        change = Change(proxy.node, made.node, name, self.tracer.place(), tuple(self.tracer.within), stays)
        change.name = _SYMBOLS.get(name, name)
        self.all.append(change)
        changed, proxy.node = proxy, made.node
        while "view_of" in vars(proxy):
            base, index, node = proxy.view_of
            if base.node is not node or isinstance(base, Attribute) or not self.tracer.is_tensor(base.node):
                break
            written = self.tracer.create_proxy("call_function", with_entries, (base, index, proxy), {})
            change.write_backs.append(written.node)
            base.node = written.node
            proxy.view_of = (base, index, written.node)
            proxy = base
        return changed

    def check(self) -> None:
        """Refuse changes after which memory is read under a name that does not follow them.

        Raises
        ------
        NotFollowed
        """
        for change in self.all:
            read = read_after_change(change.before, change.after, [change.after, *change.write_backs])
            if not read:
                continue
            if change.stays is not None and change.after.users:
                change.after.kwargs = {**change.after.kwargs, **change.stays}
                continue
            raise NotFollowed(
                f"'{change.name}' changes a tensor in place, and another view of its memory is read later",
                _NEW, change.place, change.within,
            )  # fmt: skip

    def _refuse_state(self, changed: Any, name: str) -> None:
        """Refuse changes of what does not come from the images: a weight, a buffer, a constant."""
        if isinstance(changed, fx.Proxy):
            held = str(changed.node.target) if changed.node.op == "get_attr" else None
        else:
            tensors = [*self.tracer.root.named_buffers(), *self.tracer.root.named_parameters()]
            held = next((path for path, tensor in tensors if tensor is changed), "")
        if held:
            rule = f"'{name}' changes {held}, which the network keeps from one call to the next"
            raise NotFollowed(rule, "change it only where self.training is true")
        if held is not None:
            rule = f"'{name}' writes values of the images into a tensor that is not made from them"
            raise NotFollowed(rule, "make that tensor from the images, as x.new_zeros(...) does")
