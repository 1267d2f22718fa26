"""The live page of a run and the API that changes its cameras: docs/page.md.

    analysis  -> Feed.watch    frames and faces, latencies      \
    publisher -> Feed.publish  alerts, scores, statuses         /  stream/page/feed.py
                    |
    the page's own thread: pictures.py (JPEG), app.py (routes), access.py (who may), server.py

What the run does is only noted, in bounded memory. All work for viewers is done in the page's
threads, which have a lower priority than the analysis, and none while nobody looks.
"""
