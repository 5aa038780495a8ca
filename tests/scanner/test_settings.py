"""Settings: flags over environment over file over defaults, with origins; slips are refused."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from scanner import describe
from scanner.config import ScanConfig
from scanner.errors import UsageError
from scanner.outputs import parse_outputs
from scanner.settings import merge, nearest, origins, scan_config, with_fields
from scanner.settings_file import read_settings_file
from scanner.settings_table import NAMES, SETTINGS, default_of
from tests.models import save_clean_set, save_model, stated, template_model
from tests.scanner.scans import Run, here
from tests.scanner.test_cli import CLASSES, assert_one_line_of_error, tiny_images

TODAY = date(2027, 1, 31)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def file(text: str, name: str = "bdscan.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def merged(
    flags: dict[str, Any] | None = None, environment: dict[str, str] | None = None
) -> dict[str, tuple[Any, str]]:
    found = read_settings_file(None, TODAY)
    values = merge(flags or {}, environment or {}, found.texts, found.path)
    return {name: (value.value, value.origin) for name, value in values.items()}


# --- the table --------------------------------------------------------------------------------


def test_names_are_unique_and_fields_exist() -> None:
    assert len(set(NAMES)) == len(NAMES)
    fields = [setting.field for setting in SETTINGS if setting.field]
    assert len(set(fields)) == len(fields)
    for path in fields:
        with_fields(ScanConfig(), {path: None})  # TypeError if there is no such field


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_defaults_are_those_of_the_configuration(setting: Any) -> None:
    if setting.field and not setting.many:
        value: Any = ScanConfig()
        for name in setting.field.split("."):
            value = getattr(value, name)
        assert default_of(setting) == value


def test_nothing_stated_is_the_default_configuration() -> None:
    values = merge({}, {}, {})
    assert scan_config(values) == ScanConfig()
    assert {value.origin for value in values.values()} == {"default"}


# --- which source counts ----------------------------------------------------------------------


def test_flags_beat_the_environment_that_beats_the_file_that_beats_the_default() -> None:
    file("seed = 1\nimages_per_class = 2\ndevice = 'cpu'\n")
    found = merged({"seed": "3"}, {"BDSCAN_SEED": "5", "BDSCAN_IMAGES_PER_CLASS": "4"})
    assert found["seed"] == (3, "flag --seed")
    assert found["images_per_class"] == (4, "environment BDSCAN_IMAGES_PER_CLASS")
    assert found["device"] == ("cpu", "file bdscan.toml")
    assert found["max_seconds"] == (None, "default")


def test_a_switch_of_a_file_can_be_taken_back() -> None:
    file("exit_zero = true\n")
    assert merged()["exit_zero"] == (True, "file bdscan.toml")
    assert merged({"exit_zero": False})["exit_zero"] == (False, "flag --exit-zero")
    assert merged({}, {"BDSCAN_EXIT_ZERO": "no"})["exit_zero"][0] is False


@pytest.mark.parametrize(
    ("name", "toml", "text", "expected"),
    [
        ("mean", "[0.5, 0.25]", "0.5,0.25", (0.5, 0.25)),
        ("mean", '"0.5"', "0.5", (0.5,)),
        ("target_classes", "[0, 3]", "0,3", (0, 3)),
        ("target_classes", '"0,3-5"', "0,3-5", (0, 3, 4, 5)),
        ("detectors", '["mask_pattern", "l_red"]', "mask_pattern,l_red", ("mask_pattern", "l_red")),
        ("image_size", '"4x6"', "4x6", (4, 6)),
        ("max_seconds", "1.5", "1.5", 1.5),
        ("fail_on", '["error"]', "error", ("error",)),
        ("require_sha256", f'"{"ab" * 32}"', "ab" * 32, ("ab" * 32,)),
    ],
)
def test_a_file_says_the_same_as_a_flag_or_a_variable(
    name: str, toml: str, text: str, expected: Any
) -> None:
    file(f"{name} = {toml}\n")
    assert merged()[name][0] == expected
    assert merged({}, {f"BDSCAN_{name.upper()}": text})[name][0] == expected
    many = next(setting for setting in SETTINGS if setting.name == name).many
    assert merged({name: [text] if many else text})[name][0] == expected


def test_limits_and_outputs_may_be_tables() -> None:
    file('limit = {nodes = "200k"}\n[output]\njson = "a.json"\nsarif = "a.sarif"\n')
    found = merged()
    assert found["limit"][0].nodes == 200_000
    assert found["output"][0] == ("json=a.json", "sarif=a.sarif")


def test_paths_in_a_file_are_relative_to_its_folder() -> None:
    own = file(
        f'clean_dir = "imgs"\noutput = ["json=a.json"]\nrequire_sha256 = ["{"ab" * 32}", "pins"]\n'
        'labels = "/names.txt"\n',
        "conf/audit.toml",
    )
    found = read_settings_file(own, TODAY)
    values = merge({}, {}, found.texts, found.path)
    assert values["clean_dir"].value == "conf/imgs"
    assert values["output"].value == ("json=conf/a.json",)
    assert values["require_sha256"].value == ("ab" * 32, "conf/pins")
    assert values["labels"].value == "/names.txt"


def test_the_configuration_and_its_origins_reach_the_report() -> None:
    file('schedule = "paper"\n')
    found = read_settings_file(None, TODAY)
    flags = {"mean": "0.5", "limit": ["nodes=7"], "seed": "0"}
    values = merge(flags, {"BDSCAN_OUTPUT_NAME": "y"}, found.texts, found.path)
    config = scan_config(values)
    assert (config.l_red.schedule, config.output) == ("paper", "y")
    told = describe.configuration(config, origins(values))
    assert told["l_red"]["schedule"] == {"value": "paper", "origin": "file bdscan.toml"}
    assert told["l_red"]["step_size"]["origin"] == "default"
    assert told["preprocessing"]["mean"]["origin"] == "flag --mean"
    assert told["output"]["origin"] == "environment BDSCAN_OUTPUT_NAME"
    assert told["limits"]["nodes"] == {"value": 7, "origin": "flag --limit"}
    assert told["limits"]["file_bytes"]["origin"] == "default"
    assert told["seed"] == {"value": 0, "origin": "flag --seed"}


# --- which file -------------------------------------------------------------------------------


def test_no_file_states_nothing() -> None:
    file("[tool.ruff]\nline-length = 100\n", "pyproject.toml")
    found = read_settings_file(None, TODAY)
    assert (found.path, found.texts, found.waivers) == (None, {}, ())


def test_a_project_file_counts_with_a_section_of_ours() -> None:
    file("[tool.bdscan]\nseed = 4\n", "pyproject.toml")
    assert merged()["seed"] == (4, "file pyproject.toml")


def test_our_own_file_goes_before_the_project_s_which_is_told() -> None:
    file("[tool.bdscan]\nseed = 4\n", "pyproject.toml")
    file("[tool.bdscan]\nimages-per-class = 3\n")
    found = read_settings_file(None, TODAY)
    assert (found.path, found.passed_over) == (Path("bdscan.toml"), Path("pyproject.toml"))
    assert found.texts == {"images_per_class": ("3",)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sede = 1\n", "'sede' is no setting; did you mean 'seed'"),
        ("images-per-clas = 1\n", "did you mean 'images_per_class'"),
        ("waiver = []\n", "did you mean 'waivers'"),
        ("frobnicate = 1\n", "`bdscan config` lists all"),
        ("seed = 1\nseed = 2\n", "can't be read"),
        ("images-per-class = 1\nimages_per_class = 2\n", "stated twice"),
        ("seed = 2027-01-31\n", "expected text, a number"),
        ("seed = 1\n[tool.bdscan]\nseed = 2\n", "'tool' is no setting"),
        ("waivers = 3\n", "waivers"),
    ],
)
def test_what_is_no_setting_is_refused_with_a_suggestion(text: str, words: str) -> None:
    file(text)
    with pytest.raises(UsageError, match=r"bdscan\.toml") as caught:
        read_settings_file(None, TODAY)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = 1.5\n", "bdscan.toml: seed '1.5': expected a whole number"),
        ("images_per_class = 0\n", "at least 1"),
        ("significance = 2\n", "at most 1"),
        ("max_seconds = inf\n", "expected a number"),
        ("exit_zero = 'perhaps'\n", "true or false"),
        ("format = 'xml'\n", "jsonl"),
        ("fail_on = ['findings']\n", "backdoor_found"),
        ("detectors = []\n", "expected some of"),
        ("clean_dir = ''\n", "got nothing"),
        ("limit = ['nodes=none']\n", "bdscan.toml: limit"),
    ],
)
def test_a_wrong_value_says_where_it_stands(text: str, words: str) -> None:
    file(text)
    with pytest.raises(UsageError, match=r"bdscan\.toml") as caught:
        merged()
    assert words in str(caught.value)


def test_a_variable_that_is_nearly_a_setting_is_refused_and_others_are_passed_over() -> None:
    merged({}, {"BDSCAN_DEBUG": "1", "BDSCAN_SHARED": "x", "BDSCAN_IMAGE": "y", "PATH": "z"})
    with pytest.raises(UsageError, match="BDSCAN_FAIL_NO is no setting: did you mean BDSCAN_FAIL"):
        merged({}, {"BDSCAN_FAIL_NO": "error"})


def test_a_file_that_is_named_must_be_there_and_hold_a_section() -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read_settings_file(Path("nowhere.toml"), TODAY)
    file("[tool.ruff]\n", "pyproject.toml")
    with pytest.raises(UsageError, match=r"no \[tool\.bdscan\]"):
        read_settings_file(Path("pyproject.toml"), TODAY)


def test_nearest_finds_slips_only() -> None:
    assert nearest("sede", NAMES, 0.6) == "seed"
    assert nearest("zzz", NAMES, 0.6) is None


# --- `bdscan config` --------------------------------------------------------------------------


def test_config_prints_the_merged_settings_with_origins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file('seed = 7\nlimit = ["nodes=5"]\n')
    monkeypatch.setenv("BDSCAN_IMAGES_PER_CLASS", "3")
    run = here("config", "--device", "cpu", cwd=tmp_path)
    assert (run.code, run.err) == (0, "")
    lines = {line.split(" ")[0]: line for line in run.out.splitlines()}
    assert set(NAMES) <= set(lines)
    assert lines["seed"].endswith("= 7  (file bdscan.toml)")
    assert lines["limit"].endswith("= nodes=5  (file bdscan.toml)")
    assert lines["images_per_class"].endswith("= 3  (environment BDSCAN_IMAGES_PER_CLASS)")
    assert lines["device"].endswith("= cpu  (flag --device)")
    assert lines["out_dir"].endswith("= bdscan-results  (default)")


def test_config_as_json(tmp_path: Path) -> None:
    file("mean = [0.5]\n", "deep/own.toml")
    run = here("config", "--config", "deep/own.toml", "--format", "json", cwd=tmp_path)
    facts = json.loads(run.out)
    assert facts["file"] == "deep/own.toml"
    assert facts["settings"]["mean"] == {"value": [0.5], "origin": "file deep/own.toml"}
    assert set(facts["settings"]) == set(NAMES)
    isolated = json.loads(here("config", "--isolated", "--format=json", cwd=tmp_path / "deep").out)
    assert isolated["file"] is None


def test_a_wrong_file_is_wrong_usage_of_every_command_that_reads_it(tmp_path: Path) -> None:
    file("sede = 1\n")
    for arguments in (["config"], ["model.onnx", "--clean-dir", "imgs"]):
        run = here(*arguments, cwd=tmp_path)
        assert (run.code, run.out) == (4, "")
        assert_one_line_of_error(run, "bdscan.toml", "seed")


# --- scans with a file ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its clean set."""
    folder = tmp_path_factory.mktemp("project")
    save_clean_set(*tiny_images(), folder / "clean")
    save_model(template_model(CLASSES, metadata=stated()), folder / "good.onnx")
    return folder


def scan(folder: Path, *options: object) -> Run:
    return here("good.onnx", *options, cwd=folder)


def test_a_scan_takes_its_settings_from_the_file_and_says_so(project: Path) -> None:
    own = project / "bdscan.toml"
    own.write_text(
        'clean_dir = "clean"\nseed = 7\nformat = "json"\nquiet = true\n',
        encoding="utf-8",
    )
    one = ("--detectors", "maximum_margin")
    try:
        run = scan(project, *one)
    finally:
        own.unlink()
    assert run.code == 0, run.err
    (report,) = run.reports()
    assert report["configuration"]["seed"] == {"value": 7, "origin": "file bdscan.toml"}
    assert_one_line_of_error(run, "bdscan.toml states clean_dir", "--isolated")
    again = scan(project, "--clean-dir", "clean", *one, "--seed", "7", "--format", "json")
    (by_flags,) = again.reports()
    assert by_flags["configuration"]["seed"]["origin"] == "flag --seed"
    assert by_flags["files"]["json"] == report["files"]["json"]  # the same scan, the same file


def test_a_usage_error_is_a_json_document_where_the_file_wants_json(project: Path) -> None:
    own = project / "bdscan.toml"
    own.write_text('format = "json"\n', encoding="utf-8")
    try:
        run = scan(project, "--clean-dir", "nowhere", "-q")
    finally:
        own.unlink()
    assert run.code == 4
    assert run.document()["error"]["code"] == "usage"


# --- outputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["json"], "FORMAT=PATH"),
        (["xml=a"], "cyclonedx"),
        (["json="], "FORMAT=PATH"),
        (["json=-"], "standard output"),
        (["json=nowhere/a.json"], "can't be written"),
        (["json=."], "folder"),
        (["json=a", "sarif=./a"], "overwrite"),
        (["json=model.onnx"], "overwrite"),
    ],
)
def test_outputs_that_can_not_be_written_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_outputs(texts, [Path("model.onnx")])
    assert list(Path().iterdir()) == []


def test_several_outputs_are_written_at_once(tmp_path: Path, project: Path) -> None:
    names = {
        "text": "a.txt",
        "json": "a.json",
        "jsonl": "a.jsonl",
        "html": "a.html",
        "sarif": "a.sarif",
        "cyclonedx": "bom.json",
    }
    Path("models.lock").write_text("vendor good.onnx\n", encoding="utf-8")
    options = [part for f, n in names.items() for part in ("--output", f"{f}={tmp_path / n}")]
    run = scan(
        project,
        *("--clean-dir", "clean", "--detectors", "maximum_margin", "-q"),
        *("--format", "json", "--sarif-anchor", tmp_path / "models.lock", *options),
    )
    assert run.code == 0, run.err
    text = {form: (tmp_path / name).read_text(encoding="utf-8") for form, name in names.items()}
    assert json.loads(text["json"]) == run.document()
    assert [json.loads(line) for line in text["jsonl"].splitlines()] == run.reports()
    assert "verdict: no_backdoor_found" in text["text"]
    assert "\x1b" not in text["text"]
    assert "No backdoor found" in text["html"]
    assert json.loads(text["sarif"])["runs"][0]["artifacts"][0]["hashes"]
    (component,) = json.loads(text["cyclonedx"])["components"]
    url = component["externalReferences"][0]["url"]
    assert (tmp_path / url).resolve().is_file()
    assert (tmp_path / url).name == run.reports()[0]["files"]["json"]["name"]


def test_outputs_need_no_stored_results(tmp_path: Path, project: Path) -> None:
    Path("bdscan-results").write_text("a file in the way", encoding="utf-8")
    names = {"html": "a.html", "sarif": "a.sarif", "cyclonedx": "bom.json"}
    options = [part for f, n in names.items() for part in ("--output", f"{f}={n}")]
    clean = ("--clean-dir", project / "clean", "--detectors", "maximum_margin", "-q")
    run = here(project / "good.onnx", *clean, *options, cwd=tmp_path)
    assert run.code == 0, run.err
    assert_one_line_of_error(run, "only printed")
    assert "No backdoor found" in Path("a.html").read_text(encoding="utf-8")
    (component,) = json.loads(Path("bom.json").read_text(encoding="utf-8"))["components"]
    assert component["externalReferences"] == []
    assert component["hashes"]
    assert json.loads(Path("a.sarif").read_text(encoding="utf-8"))["version"] == "2.1.0"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_on_a_full_disk_is_told_and_makes_the_run_incomplete(project: Path) -> None:
    common = ("--clean-dir", "clean", "--detectors", "maximum_margin", "-q")
    full = ("--output", "json=/dev/full")
    run = scan(project, *common, *full)
    assert run.code == 2
    assert_one_line_of_error(run, "json=/dev/full", "No space")
    assert "verdict: no_backdoor_found" in run.out


def test_an_anchor_without_sarif_is_wrong_usage(project: Path) -> None:
    run = scan(project, "--clean-dir", "clean", "-q", "--sarif-anchor", "good.onnx")
    assert run.code == 4
    assert_one_line_of_error(run, "--sarif-anchor", "--output sarif=PATH")
