"""Reports as a CycloneDX 1.6 bill of materials: which model, which bytes, where the report is.

The format has no field for a verdict. A model is a component of type `machine-learning-model` with
its digest and an external reference of type `dynamic-analysis-report` to the stored result, with
that file's digest; the verdict is a property. A backdoor found is an entry under `vulnerabilities`
that affects the component. Nothing is said that the scan has not seen: no model card is made up.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote_from_bytes

from scanner.output import printable
from scanner.reports.sarif import fingerprint
from scanner.reports.stored import MODEL, StoredResult
from scanner.results import BACKDOOR_FOUND

SPEC_VERSION = "1.6"
SCHEMA_URI = "http://cyclonedx.org/schema/bom-1.6.schema.json"
HIDDEN_FUNCTIONALITY = 912  # the CWE for a backdoor
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:bdscan:cyclonedx")


def to_cyclonedx(results: Sequence[StoredResult], folder: Path | None = None) -> dict[str, Any]:
    """Stored results of scans as one bill of materials; the same results give the same document.

    Args:
        folder: where the document will lie, so that it can say where the results lie from there;
            None: beside them.
    """
    models = [result for result in results if result.kind == MODEL]
    refs = [_ref(result.content, index) for index, result in enumerate(models)]
    finished = sorted(r.content["finished"] for r in models if r.content["finished"])
    tool = {"type": "application", "name": "bdscan"}
    versions = {r.content["tool"].get("version", "") for r in models} - {""}
    if len(versions) == 1:
        tool["version"] = versions.pop()
    # Whoever wrote the results, the same ones have the same serial number.
    identity = "\n".join(
        f"{ref} {r.content['verdict']} {r.content['finished']} {r.sha256}"
        for ref, r in zip(refs, models, strict=True)
    )
    return {
        "$schema": SCHEMA_URI,
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, identity)}",
        "version": 1,
        "metadata": {
            **({"timestamp": finished[-1]} if finished else {}),
            "tools": {"components": [tool]},
        },
        "components": [_component(r, ref, folder) for r, ref in zip(models, refs, strict=True)],
        "vulnerabilities": [
            _vulnerability(result.content, ref, target)
            for result, ref in zip(models, refs, strict=True)
            if result.content["verdict"] == BACKDOOR_FOUND
            for target in result.content["target_classes"]
        ],
    }


def _ref(report: Mapping[str, Any], index: int) -> str:
    return f"model-{index + 1}-{(report['model']['sha256'] or 'unreadable')[:12]}"


def _component(result: StoredResult, ref: str, folder: Path | None) -> dict[str, Any]:
    report = result.content
    model = report["model"]
    properties = {
        "bdscan:verdict": report["verdict"],
        "bdscan:path": printable(model["path"]),
        "bdscan:target_classes": ",".join(map(str, report["target_classes"])),
        "bdscan:reasons": printable("; ".join(note["message"] for note in report["reasons"])),
        "bdscan:waivers": printable("; ".join(map(_waiver, report.get("waivers", ())))),
    }
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": printable(PurePath(model["path"]).name) or "model",
        "externalReferences": [_reference(result, folder)] if result.file.name else [],
        "properties": [{"name": k, "value": v} for k, v in properties.items() if v],
    }
    if model["sha256"]:
        component["hashes"] = [{"alg": "SHA-256", "content": model["sha256"]}]
    return component


def _waiver(waived: Mapping[str, Any]) -> str:
    what = waived["verdict"] or f"target class {waived['target_class']}"
    state = "expired on" if waived["expired"] else "waived until"
    return f"{what} {state} {waived['expires']}: {waived['reason']}"


def _reference(result: StoredResult, folder: Path | None) -> dict[str, Any]:
    """The stored result, as seen from the bill of materials."""
    place = result.file.name
    if folder is not None:
        place = PurePath(os.path.relpath(result.file, folder)).as_posix()
    reference: dict[str, Any] = {
        "type": "dynamic-analysis-report",
        "url": quote_from_bytes(os.fsencode(place)),
        "comment": "bdscan's report",
    }
    if result.sha256:
        reference["hashes"] = [{"alg": "SHA-256", "content": result.sha256}]
    return reference


def _vulnerability(report: Mapping[str, Any], ref: str, target: int) -> dict[str, Any]:
    reasons = "; ".join(note["message"] for note in report["reasons"])
    return {
        "bom-ref": f"{ref}-class-{target}",
        "id": f"BDS001-{fingerprint(report, 'BDS001', target)[:16]}",
        "source": {"name": "bdscan"},
        "ratings": [{"source": {"name": "bdscan"}, "severity": "critical", "method": "other"}],
        "cwes": [HIDDEN_FUNCTIONALITY],
        "description": f"The model hides a backdoor to target class {target}.",
        "detail": printable(reasons),
        "recommendation": "Do not deploy the model before its vendor has explained this.",
        "analysis": {"state": "in_triage"},
        "affects": [{"ref": ref}],
    }
