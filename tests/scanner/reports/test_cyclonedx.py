"""CycloneDX: valid under the 1.6 schema, pointing to the stored results and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scanner.reports.cyclonedx import to_cyclonedx
from scanner.reports.stored import StoredResult, read_results
from scanner.results import VERDICTS, ModelInfo, ModelReport, ScanReport, to_json
from tests.scanner.reports.made import (
    SHA,
    in_memory,
    make_report,
    samples_content,
    store_samples,
    stored,
)

schema = pytest.importorskip("cyclonedx.schema", reason="needs cyclonedx-python-lib")
validation = pytest.importorskip("cyclonedx.validation.json")


def errors(document: dict[str, Any]) -> str | None:
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    found = validator.validate_str(json.dumps(document))
    return None if found is None else str(found)


def valid(results: Sequence[StoredResult]) -> dict[str, Any]:
    document = to_cyclonedx(results)
    assert errors(document) is None
    return document


def test_the_schema_refuses_what_is_wrong() -> None:
    document = to_cyclonedx([in_memory(make_report())])
    document["components"][0]["type"] = "neural-network"
    assert errors(document) is not None


def test_a_model_is_a_component_that_points_to_its_result(tmp_path: Path) -> None:
    result = stored(make_report(), tmp_path)
    [component] = valid([result])["components"]
    assert component["type"] == "machine-learning-model"
    assert component["hashes"] == [{"alg": "SHA-256", "content": SHA}]
    [reference] = component["externalReferences"]
    assert reference["type"] == "dynamic-analysis-report"
    assert reference["url"] == result.file.name
    digest = hashlib.sha256(result.file.read_bytes()).hexdigest()
    assert reference["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_a_part_of_a_file_has_no_digest_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "all results.json"
    document = to_json(ScanReport((make_report(), make_report(seed=1))))
    path.write_text(json.dumps(document), encoding="utf-8")
    results = [r for r in read_results(path) if isinstance(r, StoredResult)]
    for component in valid(results)["components"]:
        [reference] = component["externalReferences"]
        assert reference["url"] == "all%20results.json"
        assert "hashes" not in reference


@pytest.mark.parametrize("verdict", VERDICTS)
def test_only_a_backdoor_is_a_vulnerability(verdict: str) -> None:
    targets = (2, 4) if verdict == "backdoor_found" else ()
    document = valid([in_memory(make_report(verdict=verdict, target_classes=targets))])
    [component] = document["components"]
    properties = {p["name"]: p["value"] for p in component["properties"]}
    assert properties["bdscan:verdict"] == verdict
    assert len(document["vulnerabilities"]) == len(targets)
    for entry in document["vulnerabilities"]:
        assert entry["affects"] == [{"ref": component["bom-ref"]}]


def test_the_same_model_twice_has_two_references() -> None:
    document = valid([in_memory(make_report()), in_memory(make_report())])
    assert len({c["bom-ref"] for c in document["components"]}) == 2


def test_a_model_that_could_not_be_read_is_a_component() -> None:
    [component] = valid([in_memory(ModelReport(ModelInfo("x/..\n.onnx"), "error"))])["components"]
    assert "hashes" not in component
    assert component["name"].isprintable()


def test_results_of_samples_are_left_out(tmp_path: Path) -> None:
    assert valid([store_samples(tmp_path, samples_content())])["components"] == []


def test_the_same_results_give_the_same_document_and_others_another() -> None:
    first, again, other = (
        to_cyclonedx([in_memory(report)])
        for report in (make_report(), make_report(), make_report(verdict="inconclusive"))
    )
    assert first == again
    assert first["serialNumber"] != other["serialNumber"]
