"""Networks as inference engines: export, build, manifest, and the back ends that run them."""

import os

# Else ONNX Runtime looks up its maker's host and writes a device id into the home folder, from its
# import on; it reads this variable then and never again (docs/decisions/0023).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
