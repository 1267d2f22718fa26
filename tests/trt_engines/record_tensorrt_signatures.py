"""Write tensorrt_signatures.json: what TensorRT's own bindings take, for tests without TensorRT.

`python tests/trt_engines/record_tensorrt_signatures.py FOLDER...`, each the unpacked wheel of
tensorrt-cu13-bindings (11) or tensorrt-cu12-bindings (10). The bindings need three libraries that
no public index has. They only have to be there, not to work, for the docstrings to be read: empty
ones are compiled on the spot (gcc).
"""

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

TABLE = Path(__file__).parent / "tensorrt_signatures.json"
READ = "--read"  # in a process of its own, the bindings that are found there
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry",
    "initLibNvInferPlugins",
)  # fmt: skip
# What building calls, and all there is of the classes that stand_in_tensorrt.py stands for. A call
# that is missing here fails the tests until it is recorded.
CALLED = {
    "Builder": ["__init__", "create_network", "create_builder_config", "build_serialized_network",
                "create_optimization_profile"],
    "INetworkDefinition": ["num_inputs", "get_input"],
    "ITensor": ["name", "shape", "get_dimension_name"],
    "OnnxParser": ["__init__", "parse", "supports_model_v2", "num_errors", "get_error"],
    "ParserError": ["desc", "node", "node_name", "node_operator"],
    "IBuilderConfig": ["add_optimization_profile", "set_memory_pool_limit", "clear_flag",
                       "create_timing_cache", "set_timing_cache"],
    "ITimingCache": ["serialize"],
    "IOptimizationProfile": ["set_shape"],
}  # fmt: skip
WHOLE = ("ILogger", "Runtime", "ICudaEngine", "IExecutionContext")
ENUMS = (
    "NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "DataType", "TensorIOMode",
    "TensorLocation", "ExecutionContextAllocationStrategy",
)  # fmt: skip


def signatures(trt):
    """Return what a module of bindings says of itself, as it is recorded."""
    classes = {cls: {m: _member(getattr(trt, cls), m) for m in ms} for cls, ms in CALLED.items()}
    for cls in WHOLE:
        public = (m for m in dir(getattr(trt, cls)) if m == "__init__" or not m.startswith("_"))
        classes[cls] = {m: _member(getattr(trt, cls), m) for m in public}
    enums = {enum: sorted(getattr(trt, enum).__members__) for enum in ENUMS}
    return {"version": trt.__version__, "classes": classes, "enums": enums}


def _member(cls, name):
    """Return a property as one, and else the arguments of each overload: name, type, default."""
    member = inspect.getattr_static(cls, name)
    if isinstance(member, property):
        return {"property": True, "settable": member.fset is not None}
    heads = re.findall(rf"^(?:\d+\. )?{name}\(self: [\w.]+(.*)\) -> ", member.__doc__ or "", re.M)
    takes = [re.findall(r", (\w+): ([\w.\[\]|]+)( = )?", head) for head in heads]
    return {"takes": [[[n, kind.split(".")[-1], bool(d)] for n, kind, d in take] for take in takes]}


def recorded(wheel):
    """Return what the bindings in an unpacked wheel say of themselves."""
    (major,) = {int(p.name.split("-")[1].split(".")[0]) for p in wheel.glob("*.dist-info")}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
        for name in LIBRARIES:
            file = f"lib{name}.so.{major}"
            command = ["gcc", "-shared", "-fPIC", source, "-o", Path(folder) / file]
            subprocess.run([*command, f"-Wl,-soname,{file}"], check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": str(wheel)}
        command = [sys.executable, __file__, READ]
        return json.loads(subprocess.check_output(command, env=environment))


if __name__ == "__main__" and sys.argv[1:] == [READ]:
    json.dump(signatures(import_module("tensorrt_bindings")), sys.stdout)
elif __name__ == "__main__":
    tables = [recorded(Path(folder)) for folder in sys.argv[1:]]
    TABLE.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
