"""From a module to the graph of its calls, or the reason why it has none."""

import copy
import inspect
import traceback

from torch import fx

from decomp.errors import TraceError
from decomp.graph.foreign_batchnorm import replace_foreign_batchnorms
from decomp.graph.size_branches import SizeQuestions


class _Tracer(fx.Tracer):
    """Modules of torch.nn are leaves, and those that are named; everything else is followed.

    With the shape of the images, branches on sizes are taken as images of that shape take them; `branches` has the
    places in the source.
    """

    def __init__(self, leaves, shape):
        super().__init__()
        self.leaves, self.met, self.branches = frozenset(leaves), set(), {}
        self.shape, self._sizes, self._running = shape, None, False

    def to_bool(self, obj):
        if self.shape is not None:
            self._sizes = self._sizes or SizeQuestions(self.root, self.shape)
            self._running = True
            try:
                answer = self._sizes.answer(obj.node)
            finally:
                self._running = False
            if answer is not None:
                self.branches[_named(traceback.extract_stack())] = answer
                return answer
        return super().to_bool(obj)

    # While a question is answered, modules run and are not recorded.
    def call_module(self, m, forward, args, kwargs):
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        """Only what has no default is an input: the others take their defaults while the network is followed.

        With an input in their place, `if mask is None` would be answered for a mask that nobody gives.
        """
        parameters = list(inspect.signature(inspect.unwrap(root_fn)).parameters.values())[1:]
        if any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters):
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        names = [p.name for p in parameters if p.default is p.empty]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def is_leaf_module(self, module, path):
        if path in self.leaves:
            self.met.add(path)
            return True
        return super().is_leaf_module(module, path)


def trace(model, name="model", leaves=(), shape=None):
    """Trace a copy of the model in evaluation mode.

    Batch normalisations of other classes than torch's own become plain ones, see :mod:`decomp.graph.foreign_batchnorm`.

    Parameters
    ----------
    model : torch.nn.Module
    name : str
        For messages.
    leaves : iterable of str
        Paths of modules that are called as they are, without looking inside.
    shape : tuple of int, optional
        (C, H, W) of the images: with it, branches on sizes can be followed, as images of this shape take them.

    Returns
    -------
    torch.fx.GraphModule
        Its ``meta["batchnorms"]`` has the paths of the batch normalisations that were exchanged, ``meta["branches"]``
        the places in the source where a branch was decided by a size: the network is then for images of this shape.

    Raises
    ------
    TraceError
        With the place in the forward pass that could not be followed and the ways out.
    """
    model = copy.deepcopy(model).eval()
    paths = {path for path, _ in model.named_modules()}
    unknown = [leaf for leaf in leaves if leaf not in paths or not leaf]
    if unknown:
        raise TraceError(name, "has no module of this name for --leaf", got=unknown[0])
    exchanged = replace_foreign_batchnorms(model, leaves)
    tracer = _Tracer(leaves, shape)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise TraceError(
            name,
            f"the forward pass cannot be traced{_place(error)}: {reason}",
            fix="name the module it lies in with --leaf to leave that alone, or treat another part of the network "
            "with --module",
        ) from error
    traced = fx.GraphModule(tracer.root, graph)
    traced.meta.update(batchnorms=exchanged, branches=list(tracer.branches))
    _drop_what_does_nothing(graph)
    _images_by_place(traced)
    graph.eliminate_dead_code()
    traced.recompile()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    needed = [node for node in placeholders if node.users or not node.args]
    if len(needed) != 1:
        raise TraceError(name, "the model must take one image tensor", got=f"{len(needed)} inputs")
    return traced


def _drop_what_does_nothing(graph):
    """Stochastic depth passes its input on in evaluation mode, and is no function that data can name."""
    for node in list(graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "stochastic_depth":
            if "training" in node.kwargs and not node.kwargs["training"] or len(node.args) > 3 and not node.args[3]:
                node.replace_all_uses_with(node.args[0])


def _images_by_place(traced):
    """What a module of torch.nn is called on comes first, also where the call names it: `conv(input=x)`."""
    for node in traced.graph.nodes:
        if node.op == "call_module" and not node.args and "input" in node.kwargs:
            others = {name: value for name, value in node.kwargs.items() if name != "input"}
            node.args, node.kwargs = (node.kwargs["input"],), others


def _place(error):
    """' at file.py:line' of the deepest frame outside torch, or ''."""
    place = _named(traceback.extract_tb(error.__traceback__))
    return f" at {place}" if place else ""


def _named(frames):
    """'file.py:line' of the deepest frame that is neither torch's nor this file's, or ''."""
    frames = [f for f in frames if "/torch/" not in f.filename.replace("\\", "/")]
    frames = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<")]
    return f"{frames[-1].filename.replace(chr(92), '/').rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
