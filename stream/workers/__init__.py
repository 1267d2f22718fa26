"""Several processes, each with a share of the sources: `run_stream.py --workers`.

supervisor.py   starts them, hears them, starts again what died; publishes for who is not watched;
                takes changes of the sources to them
worker.py       the whole life of one: the pipeline of `stream.pipeline` over its share
said.py         what a worker tells the supervisor
told.py         what the supervisor tells a worker
showing.py      a worker's part of the page: passes on what its board shows
page.py         the supervisor's: one board that collects what all workers show
shown.py        what goes between the two
shares.py       which sources go together, and how many threads each worker has
"""
