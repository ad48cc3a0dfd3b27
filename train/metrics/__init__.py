"""Metrics: records, timers, trackers, the progress bar, the profiler."""
