"""Detectors: one file, one paper."""
