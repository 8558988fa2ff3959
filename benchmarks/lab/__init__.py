"""The laboratory: benign and malicious loads in environments that differ as hosts do."""
