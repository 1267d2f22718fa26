"""Scanning archives of files: `run_stream.py scan`, which docs/scan.md explains.

    inputs -> children (a process per file decodes, stream.scan.reading) -> stream.analyse
           -> tally (records to rows) -> journal (a line per file) -> results, report

The way of the data is that of the live stream; what differs is `policy`.
"""
