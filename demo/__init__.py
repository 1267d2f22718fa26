"""A generated clip, end to end: `make demo`. Not installed; run from the checkout."""
