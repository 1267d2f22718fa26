"""Errors of the trt_engines package.

EngineError
    EngineMismatchError     manifest and file, or engine and machine, don't belong together: rebuild
"""


class EngineError(Exception):
    """An engine can't be built, loaded or run; the message says what to do."""


class EngineMismatchError(EngineError):
    """The engine is not what its manifest describes, or was built for another machine."""
