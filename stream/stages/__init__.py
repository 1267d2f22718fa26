"""The stages of the straight line, in the order of the data: see `stream.analyse`."""
