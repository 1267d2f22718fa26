"""Write pynvvideocodec_signatures.json: what PyNvVideoCodec itself takes, for tests without a GPU.

`python tests/stream/decode/record_pynvvideocodec.py FOLDER`, the unpacked wheel. Its library needs
the driver's libcuda.so.1, which only has to be there, not to work, for the docstrings to be read:
an empty one is compiled on the spot (gcc).
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_name("pynvvideocodec_signatures.json")
READ = """
import importlib.util, json, re, sys
spec = importlib.util.spec_from_file_location("_PyNvVideoCodec", sys.argv[1])
nvc = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nvc)
def overloads(name, doc):
    heads = re.findall(rf"^(?:\\d+\\. )?{name}\\((?!\\*)(.*)\\) ->", doc, re.M)
    heads = [re.sub("<[^>]*>", "", head) for head in heads]
    return [[n for n in re.findall(r"(\\w+): ", head) if n != "self"] for head in heads]
def enum(name):
    return {k: int(v) for k, v in getattr(nvc, name).__members__.items()}
enums = ["cudaVideoCodec", "OutputColorType", "DisplayDecodeLatencyType", "VideoPacketFlag",
         "Pixel_Format"]
called = {"PyNvDecoder": ["Decode"], "DecodedFrame": ["getPTS", "__dlpack__", "__dlpack_device__"]}
print(json.dumps({
    **{name: enum(name) for name in enums},
    "CreateDecoder": overloads("CreateDecoder", nvc.CreateDecoder.__doc__),
    "methods": {c: {m: overloads(m, getattr(getattr(nvc, c), m).__doc__)[0] for m in ms}
                for c, ms in called.items()},
    "PacketData": [n for n in dir(nvc.PacketData) if n[0] != "_"],
    "bases": {n: [c.__name__ for c in getattr(nvc, n).__mro__[1:]]
              for n in ("PyNvVCException", "PyNvVCExceptionUnsupported")},
}, indent=1))
"""


def recorded(wheel):
    """Return what the library in an unpacked wheel says of itself, as JSON."""
    (library,) = (wheel / "PyNvVideoCodec").glob("PyNvVideoCodec_130.*.so")
    command = ["nm", "-D", "--undefined-only", library]
    missing = re.findall(r"U (cu\w+)$", subprocess.check_output(command, text=True), re.M)
    with tempfile.TemporaryDirectory() as folder:
        source, stub = Path(folder) / "empty.c", Path(folder) / "libcuda.so.1"
        source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in missing))
        flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        subprocess.run(["gcc", source, "-o", stub, *flags], check=True)
        path = f"{folder}:{library.parent}"
        command = [sys.executable, "-c", READ, library]
        return subprocess.check_output(
            command, env={**os.environ, "LD_LIBRARY_PATH": path}, text=True
        )


if __name__ == "__main__":
    TABLE.write_text(recorded(Path(sys.argv[1])), encoding="utf-8")
