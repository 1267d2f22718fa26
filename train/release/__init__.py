"""From a run's best weights to an engine for streaming: calibration, thresholds, export."""
