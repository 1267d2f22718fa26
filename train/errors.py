"""Errors of the train package.

TrainError      data, recipe or run can't be used; the message says what to change
"""


class TrainError(Exception):
    """Root of what this package raises on purpose."""
