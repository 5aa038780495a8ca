"""The page: complete in itself, closed to a vendor's markup, readable by machines and people."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from scanner.reports.html.page import render_html
from scanner.reports.html.samples_view import SHOWN_SAMPLES
from scanner.reports.html.words import VERDICTS as WORDS
from scanner.reports.stored import SAMPLES, StoredResult
from scanner.results import VERDICTS, ModelInfo, ModelReport, Note, NotRun
from tests.scanner.reports.made import (
    detector,
    in_memory,
    make_report,
    samples_content,
    store_samples,
    stored,
)

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% include 'x' %}",
    "javascript:alert(1)",
    "\u202etxt.exe\ud800\x00\n\r\x1b[31m",
)
VOID = {"meta", "img", "br", "hr", "input", "link", "rect", "line", "circle", "path"}


@dataclass
class Page(HTMLParser):
    """A parsed page: its elements, the text in each, and whether all are closed in order."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    raw: dict[str, str] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            self.raw[self._open[-1]] = self.raw.get(self._open[-1], "") + data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page._open == []
    return page


def hostile_report(text: str) -> Any:
    made = replace(
        make_report(),
        model=ModelInfo(text, "0" * 64, 1, 8, 17, text, class_count=6, rewrites=(text,)),
        reasons=(Note(text, text),),
        flags=(Note(text, text),),
        not_run=(NotRun(text, text, text),),
        detectors=(detector(name=text),),
        tool={"version": text},
        device={text: text},
        configuration={text: {"value": text, "origin": text}, "l": {text: {"origin": text}}},
        files={text: {"name": text, "sha256": text}},
        started=text,
        finished=text,
        arrays={},
    )
    assert made.clean_set is not None
    assert made.preprocessing is not None
    return replace(
        made,
        clean_set=replace(made.clean_set, path=text, label_rule=text),
        preprocessing=replace(made.preprocessing, origins={text: text}),
    )


def hostile_samples(text: str) -> StoredResult:
    content = json.loads(json.dumps(samples_content()).replace("cd_p", json.dumps(text)[1:-1]))
    content["model"]["path"] = text
    content["samples"][0]["file"] = text
    content["finding"]["reasons"] = [{"code": text, "message": text}]
    content["summary"]["unreadable"] = [text]
    return StoredResult(SAMPLES, content, Path("samples.json"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page of all verdicts and of samples, with pictures."""
    folder = tmp_path_factory.mktemp("results")
    reports = [
        make_report(verdict=v, target_classes=(2,) if v == "backdoor_found" else ())
        for v in VERDICTS[::-1]
    ]
    results = [stored(replace(r, seed=i), folder) for i, r in enumerate(reports)]
    results.append(store_samples(folder, samples_content()))
    return parse(render_html(results, ["x.json: broken"]))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_string_of_a_result_becomes_markup(text: str) -> None:
    plain = in_memory(hostile_report("harmless"))
    plain_page = parse(render_html([plain, hostile_samples("harmless")], ["harmless"]))
    result = in_memory(hostile_report(text), Path("result.json"))
    html = render_html([result, hostile_samples(text)], [text])
    page = parse(html)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain_page.elements]
    for (_, got), (_, expected) in zip(page.elements, plain_page.elements, strict=True):
        assert set(got) == set(expected)
    assert "49" not in page.text.replace("0.49", "")
    assert not {"\u202e", "\ud800", "\x00", "\x1b"} & set(html)


def test_a_hostile_name_is_still_told() -> None:
    page = parse(render_html([in_memory(hostile_report(HOSTILE[0]))]))
    assert page.text.count(HOSTILE[0]) > 5


def test_nothing_is_loaded_and_links_stay_in_the_page(several: Page) -> None:
    ids = {attributes["id"] for _, attributes in several.elements if "id" in attributes}
    for tag, attributes in several.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "audio", "video")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,") or value[1:] in ids
    assert "url(" not in several.raw["style"].replace("url(#hatch)", "").replace("url(#dots)", "")
    assert "@import" not in several.raw["style"]


def test_the_policy_lets_in_the_page_s_own_style_and_script_alone(several: Page) -> None:
    [policy] = [m["content"] for m in several.all("meta") if "http-equiv" in m]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(several.raw[tag].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
        assert len(several.all(tag)) == 1


def test_the_policy_stands_before_what_it_governs(several: Page) -> None:
    tags = [tag for tag, _ in several.elements]
    assert tags[:4] == ["html", "head", "meta", "meta"]
    assert several.elements[3][1]["http-equiv"] == "Content-Security-Policy"


def test_the_script_writes_no_markup(several: Page) -> None:
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval", "fetch"):
        assert word not in several.raw["script"]


def test_headings_are_in_order(several: Page) -> None:
    levels = [int(tag[1]) for tag, _ in several.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_landmarks_and_language(several: Page) -> None:
    assert several.all("html") == [{"lang": "en"}]
    for landmark in ("header", "main", "footer", "title"):
        assert len([e for e in several.all(landmark) if "id" not in e or e["id"] == "main"]) >= 1


def test_pictures_have_words_and_tables_have_headings(several: Page) -> None:
    assert len(several.all("img")) > 10
    assert all(image["alt"] and image["width"] for image in several.all("img"))
    assert all(cell["scope"] in ("row", "col") for cell in several.all("th"))
    assert len(several.all("caption")) == len(several.all("table"))
    charts = [svg for svg in several.all("svg") if "aria-hidden" not in svg]
    assert charts
    assert all(svg["role"] == "img" for svg in charts)


def test_ids_are_unique_and_references_have_targets(several: Page) -> None:
    ids = [attributes["id"] for _, attributes in several.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in several.elements:
        for name in ("aria-labelledby", "aria-describedby", "data-gallery"):
            assert set(attributes.get(name, "").split()) <= set(ids)


def test_the_worst_comes_first_and_verdicts_are_words(several: Page) -> None:
    places = [several.text.index(f"{w.sign} {w.title}") for w in WORDS.values()]
    articles = several.text.split("Why")[0]
    assert several.text.index("x.json: broken") < min(places)
    assert all(words.title in several.text for words in WORDS.values())
    assert articles.count("Backdoor found") >= 2  # in the counts and in the table


def test_the_counts_add_up(several: Page) -> None:
    counts = re.findall(r"\S (\d+) ([A-Z][^\n]+)", several.text.split("One row")[0])
    assert sum(int(count) for count, _ in counts) == len(VERDICTS)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_and_its_reasons_come_before_the_evidence(verdict: str) -> None:
    page = parse(render_html([in_memory(make_report(verdict=verdict))]))
    body = page.text[page.text.index("Do these image classifiers") :]
    order = [body.index(WORDS[verdict].title), body.index("the reason"), body.index("the flag")]
    evidence = body.index("Smallest perturbation")
    assert order == sorted(order)
    assert order[-1] < evidence


def test_a_report_without_anything_is_a_page(tmp_path: Path) -> None:
    page = parse(render_html([stored(ModelReport(ModelInfo("x.onnx"), "error"), tmp_path)]))
    assert "Error: not scanned" in page.text
    assert page.all("img") == []


def test_of_an_audit_only_suspects_triggers_are_shown(tmp_path: Path) -> None:
    results = [stored(make_report(seed=seed), tmp_path) for seed in range(9)]
    assert len(parse(render_html(results[:1])).all("img")) == 6
    assert len(parse(render_html(results)).all("img")) == 9


def test_missing_arrays_are_said(tmp_path: Path) -> None:
    result = stored(make_report(), tmp_path)
    (tmp_path / result.content["files"]["h5"]["name"]).unlink()
    page = parse(render_html([result]))
    assert "No pictures" in page.text
    assert page.all("img") == []


def test_the_gallery_shows_the_flagged_first_with_mask_pattern_and_trigger(tmp_path: Path) -> None:
    page = parse(render_html([store_samples(tmp_path, samples_content())]))
    assert page.text.index("b.png") < page.text.index("a.png")
    assert [c["class"].strip() for c in page.all("li") if "card" in c.get("class", "")] == [
        "card flagged",
        "card",
        "card",
    ]
    assert len(page.all("img")) == 2 + 2 + 3
    assert "1 of 3 images flagged" in page.text
    assert "broken.png" in page.text


def test_large_scores_can_be_the_suspicious_ones(tmp_path: Path) -> None:
    page = parse(render_html([store_samples(tmp_path, samples_content())]))
    descending = ["data-descending" in option for option in page.all("option")]
    assert descending == [False, False, False, True]


def test_of_many_samples_the_rest_is_counted(tmp_path: Path) -> None:
    files = [f"{i}.png" for i in range(SHOWN_SAMPLES + 5)]
    page = parse(render_html([store_samples(tmp_path, samples_content(files))]))
    assert "5 less suspicious images are not shown (0 of them flagged)" in page.text


def colours(style: str) -> list[dict[str, str]]:
    """The colour variables of the light, the dark and the printed page."""
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in blocks]


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", range(3), ids=["light", "dark", "print"])
@pytest.mark.parametrize("ground", ["paper", "soft"])
@pytest.mark.parametrize("ink", ["ink", "faint", "strong", "link", "bar"])
def test_contrast_is_that_of_wcag_aa(several: Page, scheme: int, ground: str, ink: str) -> None:
    palette = colours(several.raw["style"])[scheme]
    light, dark = sorted((luminance(palette[ink]), luminance(palette[ground])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= (3.0 if ink == "bar" else 4.5)  # bars are no text


@pytest.mark.parametrize(
    "query", ["prefers-color-scheme: dark", "@media print", "max-width: 30rem"]
)
def test_dark_print_and_phone_have_their_styles(several: Page, query: str) -> None:
    assert query in several.raw["style"]


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    result = stored(make_report(), tmp_path)
    assert render_html([result]) == render_html([result])
