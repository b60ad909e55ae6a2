"""A pretended GPU, for machines without one: tensors of the CPU that behave as if some of them lay on a GPU.

A tensor is on the pretended GPU where its storage is marked: ``device`` says so, and operations on tensors of different
devices, ``numpy()`` and generators of the other device raise errors as they do on a GPU. The results of an operation
are where its inputs are. :func:`pretend` changes torch for the whole process.
"""

import contextlib
import threading
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
# Operations that take tensors of both devices; those that take indices of the CPU.
BOTH = {"copy_", "_to_copy", "set_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
STRICT = {"cat", "stack", "index_select", "gather", "equal"}  # also for a number of no dimension
SWEEP = 3000

_device_of = torch.Tensor.device.__get__
_target = threading.local()


class Marks:
    """Storages on the pretended GPU, held until nothing else holds them: an address may not be taken for another."""

    def __init__(self):
        self.held, self.lock, self.count = {}, threading.RLock(), 0

    def __contains__(self, tensor):
        return _device_of(tensor).type == "cpu" and tensor.untyped_storage()._cdata in self.held

    def add(self, tensor):
        storage = tensor.untyped_storage()
        with self.lock:
            self.held[storage._cdata] = storage
            self.count += 1
            if self.count % SWEEP == 0:
                unused = [key for key, one in self.held.items() if torch._C._storage_Use_Count(one._cdata) <= 1]
                for key in unused:
                    self.held.pop(key)
        return tensor


marks = Marks()


def on_gpu(device):
    return device is not None and torch.device(device).type == "cuda"


class Pretended(TorchDispatchMode):
    """Refuses mixed devices, and marks results."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), operation._schema.name.split("::")[1]
        asked = kwargs.get("device")
        if on_gpu(asked):
            kwargs["device"] = CPU
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if tensor in marks]
        here = [tensor for tensor in tensors if tensor not in marks and _device_of(tensor).type == "cpu"]
        if there and here and name not in BOTH:
            require_one_device(name, args, tensors, here)
        if kwargs.get("generator") is not None and (there or on_gpu(asked)):
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu': {name}")
        result = operation(*args, **kwargs)
        if name in {"copy_", "set_"}:
            return result
        if name == "_to_copy":
            wanted = bool(there) if getattr(_target, "gpu", None) is None else _target.gpu
        elif name in INDEXED:
            wanted = args[0] in marks
        elif asked is not None and not (there and (name.endswith("_like") or name.startswith("new_"))):
            wanted = on_gpu(asked)
        else:
            wanted = bool(there)
        for tensor in tree_leaves(result):
            if wanted and isinstance(tensor, torch.Tensor) and _device_of(tensor).type == "cpu":
                marks.add(tensor)
        return result


def require_one_device(name, args, tensors, here):
    """Raise what torch raises where tensors of both devices meet; indices and numbers may be on the CPU."""
    if name in INDEXED:
        values = args[2] if len(args) > 2 else None
        mixed = args[0] not in marks or (values is not None and values.dim() > 0 and values not in marks)
    else:
        number = all(tensor.dim() == 0 for tensor in here)
        mixed = not number or name in STRICT or (name.endswith("_") and tensors[0] not in marks)
    if mixed:
        shapes = [(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, but got {shapes} for {name}")


def pretend():
    """Change torch in this process; nothing brings it back."""
    tensor = torch.Tensor
    tensor.device = property(lambda self: GPU if self in marks else _device_of(self))
    tensor.is_cuda = property(lambda self: self in marks)
    tensor.to = moved(tensor.to)
    tensor.cpu = lambda self, memory_format=torch.preserve_format: self.to(CPU, memory_format=memory_format)
    tensor.cuda = lambda self, *_, **__: self.to(GPU)
    tensor.pin_memory = lambda self, *_: self
    tensor.numpy, tensor.__array__ = on_cpu_only(tensor.numpy), on_cpu_only(tensor.__array__)
    copied = tensor.__deepcopy__

    def deep_copy(self, memo):
        result = copied(self, memo)
        return marks.add(result) if self in marks else result

    tensor.__deepcopy__ = deep_copy
    torch.tensor, torch.as_tensor = made(torch.tensor), made(torch.as_tensor)
    for name, value in CUDA.items():
        setattr(torch.cuda, name, value)
    start = torch.autocast.__init__

    def autocast(self, device_type, *args, **kwargs):
        start(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast.__init__ = autocast
    for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
        setattr(torch.optim.Optimizer, name, lambda self: None)
    run = threading.Thread.run

    def in_thread(self):
        with Pretended():
            run(self)

    threading.Thread.run = in_thread
    Pretended().__enter__()


def moved(to):
    """Tensor.to with a copy between the devices."""

    def on_cpu(value):
        return CPU if isinstance(value, (str, torch.device)) and on_gpu(value) else value

    def move(self, *args, **kwargs):
        named = [*args, kwargs.get("device"), kwargs.get("other")]
        device = next((torch.device(one) for one in named if isinstance(one, (str, torch.device))), None)
        device = next((one.device for one in named if isinstance(one, torch.Tensor)), device)
        args, kwargs = [on_cpu(one) for one in args], {key: on_cpu(one) for key, one in kwargs.items()}
        if (
            device is None
            or device.type == "meta"
            or _device_of(self).type == "meta"
            or on_gpu(device) == (self in marks)
        ):
            return to(self, *args, **kwargs)
        args = [one for one in args if not isinstance(one, bool)]
        before, _target.gpu = getattr(_target, "gpu", None), on_gpu(device)
        try:
            return to(self, *args, **{**kwargs, "copy": True})
        finally:
            _target.gpu = before

    return move


def on_cpu_only(method):
    """A method that a tensor on a GPU refuses."""

    def call(self, *args, **kwargs):
        if self in marks:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first")
        return method(self, *args, **kwargs)

    return call


def made(make):
    """torch.tensor and torch.as_tensor on a device."""

    def call(data, *args, device=None, **kwargs):
        if isinstance(data, torch.Tensor):
            return data.to(device=data.device if device is None else device, dtype=kwargs.get("dtype") or data.dtype)
        result = make(data, *args, **kwargs)
        return marks.add(result) if on_gpu(device) else result

    return call


CUDA = {
    "_lazy_init": lambda: None, "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
    "current_device": lambda: 0, "set_device": lambda device: None,
    "get_device_name": lambda device=None: "Pretended GPU",
    "synchronize": lambda device=None: None, "is_bf16_supported": lambda *_, **__: True,
    "manual_seed": lambda seed: None, "manual_seed_all": lambda seed: None, "empty_cache": lambda: None,
    "mem_get_info": lambda device=None: (8 << 30, 8 << 30), "memory_reserved": lambda device=None: 0,
    "memory_allocated": lambda device=None: 0, "max_memory_allocated": lambda device=None: 0,
    "get_rng_state": lambda device=None: torch.zeros(1, dtype=torch.uint8),
    "set_rng_state": lambda state, device=None: None, "device": lambda *_: contextlib.nullcontext(SimpleNamespace()),
}  # fmt: skip
