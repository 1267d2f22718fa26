"""Faces to learn from, prepared once by the streaming path's own detection and cropping."""
