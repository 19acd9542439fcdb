"""Several samples in one pass."""
