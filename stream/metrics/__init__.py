"""What a run measures, for Prometheus, and whether it is alive and ready: `--metrics`.

measures.py   the counters and histograms, fed by the analysis and by the messages
standing.py   what is known at any moment: sources, engines, certificates; alive, ready
server.py     /metrics, /healthz and /readyz by HTTP
monitor.py    all of it for one run, of one process or of several workers

docs/operate.md lists every name.
"""
