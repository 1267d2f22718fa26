"""The live page of a run and the API that changes its cameras: docs/page.md.

    analysis  -> Feed.watch    frames and faces, latencies      \
    publisher -> Feed.publish  alerts, scores, statuses         /  feed.py
                    |
                  Board        what there is to see, in bounded memory: board.py
                    |
    the page's own thread: pictures.py (JPEG), app.py (routes), access.py (who may), server.py

With workers each has a board, and the supervisor collects them (`stream/workers/page.py`).

What the run does is only noted, in bounded memory. All work for viewers is done in the page's
threads, which have a lower priority than the analysis, and none while nobody looks.
"""
