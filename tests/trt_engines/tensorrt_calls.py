"""A TensorRT that checks how it is called.

TensorRT itself can't run here. TensorRT-RTX can, with the same interface: it does the work, and
before each call the arguments are held against what the bindings of TensorRT 10 and 11 say they
take (tensorrt_signatures.json, recorded from their wheels). What only TensorRT-RTX has is refused.
"""

import json
from pathlib import Path

TABLES = json.loads((Path(__file__).parent / "tensorrt_signatures.json").read_text("utf-8"))
_PLAIN = {"SupportsInt": int, "str": str, "bool": bool, "Buffer": (bytes, bytearray), "Dims": tuple}


class WrongCallError(Exception):
    """TensorRT would raise or do something else."""


def _each_table(kind, *names):
    for table in TABLES:
        entry = table[kind]
        for name in names:
            if name not in entry:
                raise WrongCallError(
                    f"TensorRT {table['version']}: {'.'.join(names)} is not recorded; is it there? "
                    "tests/trt_engines/record_tensorrt_signatures.py"
                )
            entry = entry[name]
        yield table["version"], entry


def _fits(value, wanted):
    if wanted in _PLAIN:
        kinds = _PLAIN[wanted]
        return isinstance(value, kinds) and (wanted != "SupportsInt" or not isinstance(value, bool))
    return wanted in {cls.__name__ for cls in type(value).__mro__}


def _takes(parameters, args, kwargs):
    names = [name for name, _, _ in parameters]
    if len(args) > len(names) or any(k not in names[len(args) :] for k in kwargs):
        return False
    given = dict(zip(names, args, strict=False)) | kwargs
    return all(
        _fits(given[name], kind) if name in given else has_default
        for name, kind, has_default in parameters
    )


def _check(cls, method, args, kwargs):
    for version, entry in _each_table("classes", cls, method):
        if not any(_takes(parameters, args, kwargs) for parameters in entry["takes"]):
            raise WrongCallError(
                f"TensorRT {version}: {cls}.{method} takes {entry['takes']}, got {args} {kwargs}"
            )


class Checked:
    """An object of TensorRT-RTX behind the checks."""

    def __init__(self, trt, real):
        object.__setattr__(self, "_trt", trt)
        object.__setattr__(self, "_real", real)

    def __getattr__(self, name):
        cls = type(self._real).__name__
        properties = [entry.get("property") for _, entry in _each_table("classes", cls, name)]
        if any(properties):
            return self._trt.wrapped(getattr(self._real, name))

        def call(*args, **kwargs):
            plain = [_unwrapped(a) for a in args], {k: _unwrapped(v) for k, v in kwargs.items()}
            _check(cls, name, *plain)
            self._trt.calls.append(f"{cls}.{name}")
            return self._trt.wrapped(getattr(self._real, name)(*plain[0], **plain[1]))

        return call

    def __setattr__(self, name, value):
        cls = type(self._real).__name__
        for version, entry in _each_table("classes", cls, name):
            if not entry.get("settable"):
                raise WrongCallError(f"TensorRT {version}: {cls}.{name} can't be set")
        setattr(self._real, name, value)


class _CheckedEnum:
    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        for version, members in _each_table("enums", self._real.__name__):
            if name not in members:
                raise WrongCallError(f"TensorRT {version}: no {self._real.__name__}.{name}")
        return getattr(self._real, name)


class CheckedTensorRT:
    """Stands for the module `tensorrt`.

    Attributes:
        calls: "Class.method" of every call, in order.
    """

    def __init__(self, real, version="11.4.0.106"):
        self._real = real
        self.__version__ = version
        self.calls = []
        self._classes = TABLES[0]["classes"]

    def __getattr__(self, name):
        value = getattr(self._real, name)
        if name == "ILogger":  # to be subclassed
            return value
        if hasattr(value, "__members__"):
            return _CheckedEnum(value)
        list(_each_table("classes", name))

        def make(*args):
            args = [_unwrapped(a) for a in args]
            _check(name, "__init__", args, {})
            return self.wrapped(value(*args))

        return make

    def wrapped(self, value):
        return Checked(self, value) if type(value).__name__ in self._classes else value


def _unwrapped(value):
    return value._real if isinstance(value, Checked) else value
