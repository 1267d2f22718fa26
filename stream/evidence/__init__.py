"""Evidence of verdicts: what was seen around the moment, in signed bundles; docs/evidence.md.

`keeper` collects while the stream runs, `bundle` says what a bundle holds, `store` keeps and
deletes them, `seal` signs and verifies, `replay` runs the analysis again.
"""
