"""Which detectors find which backdoors, and whom they accuse wrongly.

``python -m tests.benchmarks.detection run TARGETS.csv --out results.jsonl`` scans every model of a
list under one or more settings, each in a process of its own, and goes on where it stopped.
``python -m tests.benchmarks.detection fleet FOLDER --clean mnist=DIR ... --out TARGETS.csv`` writes
such a list for a fleet.
``python -m tests.benchmarks.detection table TARGETS.csv results.jsonl --out JSON --markdown MD``
writes the table.
"""
