"""Data sets, one module each; a leading underscore marks what they share."""
