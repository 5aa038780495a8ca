"""The JSON Schema of reports, and checking a report against it."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema


def load_schema() -> dict[str, Any]:
    """The schema of `--format json` documents and of single reports."""
    text = resources.files(__name__).joinpath("report-1.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def validate(content: dict[str, Any]) -> None:
    """Check a document or a report.

    Raises:
        jsonschema.ValidationError: naming the first place that breaks the schema.
    """
    part = "document" if "models" in content else "report"
    schema = load_schema()
    jsonschema.validate(content, {"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]})
