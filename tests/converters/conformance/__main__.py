"""`python -m tests.converters.conformance` writes the table beside this file."""

from __future__ import annotations

import json
from pathlib import Path

from .table import as_json, run_all

TABLE = Path(__file__).with_name("conformance.json")


def main() -> None:
    table = as_json(run_all())
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    for name, row in table["suites"].items():
        print(f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in row.items()))


if __name__ == "__main__":
    main()
