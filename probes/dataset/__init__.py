"""The readers of data, one kind in each file; `probes.data` is the entry."""
