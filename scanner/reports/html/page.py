"""The HTML report: one file that needs no network, no script and no other file.

Markup is jinja2's work, with autoescape on: every string of a result is hostile, and there are too
many of them to trust a hand that calls `html.escape`. jinja2 costs nothing, since torch needs it.
A Content-Security-Policy lets in nothing but the page's own style, its own script (both by their
digest) and pictures that are in the page, should something get through after all.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from scanner.output import printable
from scanner.reports.html.clean_images import CleanImages, clean_images_of
from scanner.reports.html.model_view import ModelView, view_model
from scanner.reports.html.samples_view import SamplesView, view_samples
from scanner.reports.html.words import STOP_REASONS, VERDICTS
from scanner.reports.stored import MODEL, StoredResult
from scanner.results import VERDICTS as VERDICT_NAMES

MAX_DETAILED = 8  # with more models, only the triggers of suspected classes are shown


def render_html(
    results: Sequence[StoredResult],
    problems: Sequence[str] = (),
    clean: Sequence[CleanImages] = (),
) -> str:
    """The page for results of scans and of `bdscan samples`.

    Args:
        problems: one line for each result that could not be read.
        clean: sets of images; triggers are stamped on those that the model was scanned with.
    """
    detailed = len(results) <= MAX_DETAILED
    models: list[ModelView] = []
    samples: list[SamplesView] = []
    for number, result in enumerate(results, 1):
        if result.kind == MODEL:
            images = clean_images_of(result.content, clean)
            models.append(view_model(result, f"r{number}", images, detailed))
        else:
            samples.append(view_samples(result, f"r{number}"))
    models.sort(key=lambda view: view.words.rank)
    style, script = _asset("report.css"), _asset("report.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            models=models,
            samples=samples,
            problems=problems,
            counts=[
                (VERDICTS[name], sum(m.report["verdict"] == name for m in models))
                for name in sorted(VERDICT_NAMES, key=lambda name: VERDICTS[name].rank)
            ],
            style=Markup(style),  # our own files, not data
            script=Markup(script),
            policy=_policy(style, script),
            title=_title(models, samples),
        )
    )


def _title(models: Sequence[ModelView], samples: Sequence[SamplesView]) -> str:
    if len(models) == 1 and not samples:
        return f"{models[0].words.title}: {models[0].report['model']['path']}"
    parts = [f"{len(models)} models"] if models else []
    return ", ".join([*parts, *([f"{len(samples)} sample sets"] if samples else [])]) or "nothing"


def _policy(style: str, script: str) -> str:
    style_source, script_source = (
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for text in (style, script)
    )
    return (
        f"default-src 'none'; img-src data:; style-src {style_source}; script-src {script_source}; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    path = resources.files("scanner.reports.html").joinpath("templates", name)
    return path.read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(number=_number, percent=_percent, stop_reason=_stop_reason)
    return environment


def _shown(value: Any) -> Any:
    """What stands for a value in the page; a vendor's text without control characters."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return "" if value is None else value


def _number(value: float | None, digits: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return "unknown"
    return f"{value:.{digits}g}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _stop_reason(word: str) -> str:
    return STOP_REASONS.get(word, word.replace("_", " "))
