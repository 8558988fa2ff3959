"""The benign workload that the embedded baseline is trained from."""
