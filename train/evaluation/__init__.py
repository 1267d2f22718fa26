"""What a detector's scores are worth: metrics, reports, and clips judged through the stream."""
