"""`python -m trt_engines doctor`: what of the GPU path is on this machine, row by row.

Each package is imported in a process of its own: a library that crashes takes one row with it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trt_engines.errors import EngineError
from trt_engines.plans import read_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PATIENCE_S: Final = 300.0  # torch loads gigabytes, at first use from a cold disk
_INSTALL: Final = "install the extra `gpu` of pyproject.toml"
# What a process prints about a package, or fails to import.
_PROBES: Final[Mapping[str, tuple[str, str]]] = {
    "torch with CUDA": (
        "import torch; assert torch.cuda.is_available(), "
        "f'torch {torch.__version__}, built for CUDA {torch.version.cuda}, sees no GPU'; "
        "print(f'torch {torch.__version__}, CUDA {torch.version.cuda},', "
        "torch.cuda.get_device_name(), 'SM%d%d' % torch.cuda.get_device_capability())",
        "a torch built for CUDA, and a driver that is new enough for it",
    ),
    "TensorRT": (
        "import tensorrt; print(tensorrt.__version__)",
        f"{_INSTALL}; its libraries (tensorrt-cu13-libs) come from NVIDIA's own package index. "
        "Without it: ONNX Runtime or torch",
    ),
    "TensorRT-RTX": (
        "import tensorrt_rtx; print(tensorrt_rtx.__version__, '(builds ahead of time, no GPU)')",
        "install the extra `aot` of pyproject.toml; only `check` and builds ahead of time need it",
    ),
    "DALI": (
        "import nvidia.dali as dali; print(dali.__version__)",
        f"{_INSTALL}. Without it: PyAV decodes, and PyTorch loads",
    ),
    "PyNvVideoCodec": (
        "import PyNvVideoCodec as p; from importlib.metadata import version; "
        "v = version('PyNvVideoCodec'); print(v); "
        "assert tuple(map(int, v.split('.')[:3])) >= (2, 2, 4), "
        "f'{v} overflows a buffer when a stream changes its size; expected 2.2.4 or later'",
        "pip install 'PyNvVideoCodec>=2.2.4'; in a container it needs the driver's `video` "
        "capability. Without it: PyAV decodes",
    ),
    "ONNX Runtime": (
        "import trt_engines, onnxruntime as o; "
        "print(o.__version__, ', '.join(o.get_available_providers()))",
        "install requirements/stream.txt",
    ),
}
_LIBRARIES: Final[Mapping[str, tuple[str, str]]] = {
    "NVDEC": ("libnvcuvid.so.1", "the driver's decoder; in a container: "
              "NVIDIA_DRIVER_CAPABILITIES=video,compute,utility"),
    "NVENC": ("libnvidia-encode.so.1", "PyNvVideoCodec can't be imported without it; as for NVDEC"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One row.

    Attributes:
        what: part of the GPU path.
        is_there: whether it works as far as can be said without using it.
        found: version, or why not.
        advice: what to do if it is missing.
    """

    what: str
    is_there: bool
    found: str
    advice: str = ""


def examined(
    load: Callable[[str], object] = ctypes.CDLL, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Yield what is found, one row after the other; nothing that is missing is an error.

    Args:
        load: opens a shared library or raises OSError.
        environment: of the processes that try imports.
    """
    yield _driver(load)
    for what, (library, advice) in _LIBRARIES.items():
        yield _library(what, library, advice, load)
    for what, (program, advice) in _PROBES.items():
        yield _package(what, program, advice, environment)
    yield _key()


def _driver(load: Callable[[str], object]) -> Finding:
    what, advice = "NVIDIA driver", "install NVIDIA's driver; in a container: run with --gpus all"
    try:
        cuda: ctypes.CDLL = load("libcuda.so.1")  # type: ignore[assignment]  # as CDLL gives
    except OSError as error:
        return Finding(what, False, str(error), advice)
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    if code := cuda.cuInit(0):
        return Finding(what, False, f"cuInit fails with CUDA error {code}", advice)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    speaks = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return Finding(what, count.value > 0, f"{speaks}, {count.value} GPUs", advice)


def _library(what: str, name: str, advice: str, load: Callable[[str], object]) -> Finding:
    try:
        load(name)
    except OSError as error:
        return Finding(what, False, str(error), advice)
    return Finding(what, True, name)


def _package(what: str, program: str, advice: str, environment: Mapping[str, str]) -> Finding:
    try:
        ran = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            env=dict(environment),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(what, False, f"no answer within {_PATIENCE_S:g} s", advice)
    if ran.returncode == 0:
        return Finding(what, True, ran.stdout.strip())
    said = ran.stderr.strip().splitlines()
    reason = said[-1] if said else f"ended by signal {-ran.returncode}"
    return Finding(what, False, reason, advice)


def _key() -> Finding:
    try:
        read_key(None)
    except EngineError as error:
        return Finding("key of plans", False, str(error), "only builds and TensorRT need it")
    return Finding("key of plans", True, "in the environment")
