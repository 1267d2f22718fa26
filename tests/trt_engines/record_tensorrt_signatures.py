"""Write tensorrt_signatures.json: what TensorRT's own bindings take, for tests without TensorRT.

`python tests/trt_engines/record_tensorrt_signatures.py FOLDER...`, each the unpacked wheel of
tensorrt-cu13-bindings (11) or tensorrt-cu12-bindings (10). The bindings need three libraries that
no public index has. They only have to be there, not to work, for the docstrings to be read: empty
ones are compiled on the spot (gcc).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).parent / "tensorrt_signatures.json"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry",
    "initLibNvInferPlugins",
)  # fmt: skip
# What trt_engines calls. A call that is missing here fails the tests until it is recorded.
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
    "Runtime": ["__init__", "deserialize_cuda_engine", "engine_host_code_allowed"],
}  # fmt: skip
ENUMS = ["NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType"]
READ = """
import json, re, sys, tensorrt_bindings as trt
called, enums = json.loads(sys.argv[1])
def member(thing):
    if isinstance(thing, property):
        return {"property": True, "settable": thing.fset is not None}
    name = thing.__name__
    heads = re.findall(rf"^(?:\\d+\\. )?{name}\\((self.*)\\) -> ", thing.__doc__, re.M)
    takes = [re.findall(r"(\\w+): ([\\w.\\[\\]|]+)( = )?", head)[1:] for head in heads]
    return {"takes": [[[n, t.split(".")[-1], bool(d)] for n, t, d in take] for take in takes]}
print(json.dumps({
    "version": trt.__version__,
    "classes": {
        c: {m: member(getattr(getattr(trt, c), m)) for m in ms} for c, ms in called.items()
    },
    "enums": {e: sorted(getattr(trt, e).__members__) for e in enums},
}))
"""


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
        what = json.dumps([CALLED, ENUMS])
        command = [sys.executable, "-c", READ, what]
        return json.loads(subprocess.check_output(command, env=environment))


if __name__ == "__main__":
    tables = [recorded(Path(folder)) for folder in sys.argv[1:]]
    TABLE.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
