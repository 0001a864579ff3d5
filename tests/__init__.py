"""The tests; a package, so that `tests/ui.py` is not taken for `ui`."""
