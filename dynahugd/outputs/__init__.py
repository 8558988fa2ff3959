"""Outputs: verdicts as lines, as JSON, as metrics."""
