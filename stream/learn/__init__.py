"""A camera's own thresholds, for a budget of false alarms, and whether it still is that camera.

`visits` makes tracks into visits, `bound` chooses the threshold, `learner` watches and writes,
`drift` compares later visits with those that were learned from; docs/learn.md.
"""
