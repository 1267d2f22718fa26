"""From faces on disk to a trained, calibrated, exported detector."""
