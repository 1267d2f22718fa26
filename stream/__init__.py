"""Faces on live and recorded video: decode, detect, track, score, fuse, publish."""

__version__ = "0.1.0"
