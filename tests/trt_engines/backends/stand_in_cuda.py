"""Stands for `torch.cuda` where there is no GPU.

The GPU's memory is ordinary memory, and torch computes at once. What TensorRT is told to compute
waits in its stream, as on a GPU, until another stream waits for that one, or the host does, or
torch puts work behind it. Then it happens at the addresses that it was given, if they are still
memory. So results come out wrong where the real ones could, and every time.
"""

import threading
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class _Memory(NamedTuple):
    """A piece of memory, for as long as somebody owns it."""

    size: int
    owner: StorageWeakRef


class StandInCuda:
    """One per test: it has its own streams and its own memory."""

    def __init__(self):
        self.events = []  # what happened that tests ask about
        self._memory = {}
        self._streams = {}
        self._thread = threading.local()
        self._default = _Stream(self, handle=0)

    # What torch.cuda has, with its arguments

    def Stream(self, device=None):
        return _Stream(self, handle=1000 + len(self._streams))

    def current_stream(self, device=None):
        return getattr(self._thread, "stream", self._default)

    @contextmanager
    def stream(self, stream):
        thread = self._thread
        before, thread.stream = self.current_stream(), stream
        watched, thread.watched = getattr(thread, "watched", False), True
        try:
            with nullcontext() if watched else _Watch(self):
                yield
        finally:
            thread.stream, thread.watched = before, watched

    @contextmanager
    def device(self, device):
        before, self._thread.device = self.current_device(), str(device)
        try:
            yield
        finally:
            self._thread.device = before

    def empty_cache(self):
        self.events.append("empty_cache")

    def CUDAGraph(self):
        return _Graph(self)

    @contextmanager
    def graph(self, cuda_graph, pool=None, stream=None, capture_error_mode="global"):
        stream.synchronize()
        with self.stream(stream):
            stream.capturing = cuda_graph
            try:
                yield
            finally:
                stream.capturing = None
        # In the other modes it breaks as soon as another thread allocates; here one always does.
        if cuda_graph.broken or capture_error_mode != "thread_local":
            raise RuntimeError("CUDA error: operation failed due to a previous error (901)")

    def get_device_capability(self, device=None):
        return (8, 9)

    def get_device_name(self, device=None):
        return "a GPU"

    # What the stand-in for TensorRT needs

    def current_device(self):
        return getattr(self._thread, "device", "cpu")

    def stream_of(self, handle):
        return self._streams[handle]

    def own(self, tensor):
        """Note whose memory a tensor is."""
        storage = tensor.untyped_storage()
        self._memory[storage.data_ptr()] = _Memory(storage.nbytes(), StorageWeakRef(storage))
        return storage

    def check(self, address, size):
        """Refuse an address where no memory is, or not enough."""
        for start, memory in list(self._memory.items()):
            inside = start <= address and address + size <= start + memory.size
            if inside and not memory.owner.expired():
                return
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def recorded(self, tensor, stream):
        """`Tensor.record_stream`, which tensors on the CPU lack."""
        stream.hold(tensor)
        self.events.append(("recorded", tensor.untyped_storage().data_ptr(), stream))


class _Stream:
    def __init__(self, cuda, handle):
        self.cuda_stream = handle
        self.capturing = None
        self._cuda = cuda
        self._waiting = []
        self._held = []
        cuda._streams[handle] = self

    def wait_stream(self, stream):
        stream.finish()

    def synchronize(self):
        self._cuda.events.append("synchronize")
        self.finish()

    def put(self, work):
        """Let work happen later."""
        self._waiting.append(work)

    def hold(self, tensor):
        """Keep memory until the stream has no more use for it, as torch's allocator does."""
        self._held.append(self._cuda.own(tensor))

    def finish(self):
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()
        self._held.clear()


class _Graph:
    def __init__(self, cuda):
        self.broken = False
        self.work = []
        self._cuda = cuda

    def replay(self):
        for work in self.work:
            work.launch(self._cuda.current_stream())


class _Watch(TorchDispatchMode):
    """Sees what torch computes in a stream: it comes after what waits there."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # nothing is compiled here, and to import the compiler takes seconds

    def __init__(self, cuda):
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        stream = self._cuda.current_stream()
        if stream.capturing is not None:
            stream.capturing.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing (900)")
        if not func.is_view:  # to look at memory from another side is no work
            stream.finish()
        try:
            result = func(*args, **kwargs or {})
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            raise torch.OutOfMemoryError("CUDA out of memory.") from error
        if isinstance(result, torch.Tensor):
            stream.hold(result)
        return result
