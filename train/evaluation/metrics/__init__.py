"""Error rates of attack detection (ISO/IEC 30107-3), ROC figures, calibration and intervals.

Attack is 1, scores grow with the evidence of an attack, and a face counts as an attack when its
score is at or above the threshold. The definitions, tie rules included, are those of
docs/decisions/0009; the worked examples stand in the tests.
"""
