"""Measurements on this machine: `make bench`, `make soak`. Not installed; run from the checkout."""
