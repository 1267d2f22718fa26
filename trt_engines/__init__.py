"""Networks as inference engines: export, build, manifest, and the back ends that run them."""
