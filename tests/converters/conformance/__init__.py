"""Conformance of the importer with the ONNX project's own test cases, as a table.

`python -m tests.converters.conformance` runs every case and writes `conformance.json`;
`test_conformance.py` holds the floors.
"""
