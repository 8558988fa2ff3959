"""Probes: from the kernel to batches of records."""
