"""Faces on live and recorded video: decode, detect, track, score, fuse, publish."""
