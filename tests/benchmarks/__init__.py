"""Measurements, each a command that writes its results as JSON beside itself."""
