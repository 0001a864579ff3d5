"""Hostile, broken and awkward files with the verdict that each must get, written afresh for every test."""
