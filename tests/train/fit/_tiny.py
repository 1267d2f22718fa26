"""`python -m train` with the methods that tests/trt_engines/methods holds: a network in no time."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
METHODS = ROOT / "tests" / "trt_engines" / "methods"

if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    import models

    models.__path__.append(str(METHODS))
    runpy.run_module("train", run_name="__main__", alter_sys=True)
