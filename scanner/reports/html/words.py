"""The words of the HTML report: what verdicts, detectors and their numbers mean.

A verdict is told by a sign and words, never by colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from scanner.results import BACKDOOR_FOUND, ERROR, INCONCLUSIVE, NO_BACKDOOR_FOUND, SKIPPED


@dataclass(frozen=True)
class VerdictWords:
    """How a verdict is shown.

    Attributes:
        sign: a character for the eye.
        title: the verdict in words.
        meaning: what follows from it.
        rank: order in tables, the worst first.
    """

    sign: str
    title: str
    meaning: str
    rank: int


VERDICTS = {
    BACKDOOR_FOUND: VerdictWords(
        "✖",
        "Backdoor found",
        "A class is reached by an abnormally small trigger, which also works on images it was not "
        "made from. Do not deploy the model before somebody has explained this.",
        0,
    ),
    ERROR: VerdictWords(
        "⚠",
        "Error: not scanned",
        "The model could not be read, is not supported, or is no image classifier. Nothing is "
        "known about it.",
        1,
    ),
    INCONCLUSIVE: VerdictWords(
        "?",
        "Inconclusive",
        "The evidence is half there, or something forbids a verdict. This is no clean bill.",
        2,
    ),
    SKIPPED: VerdictWords(
        "\N{EN DASH}", "Skipped", "The model was not scanned. Nothing is known about it.", 3
    ),
    NO_BACKDOOR_FOUND: VerdictWords(
        "✔",
        "No backdoor found",
        "Every target class was searched and none stands out. This is evidence, not a proof: some "
        "attacks, for instance with one source class among many, can be missed.",
        4,
    ),
}


@dataclass(frozen=True)
class DetectorWords:
    """How a detector is shown.

    Attributes:
        title: its name in words.
        about: what it searches for and which papers say how.
        statistic: what its bars measure.
        norm: what its norm is; "" without a trigger.
    """

    title: str
    about: str
    statistic: str
    norm: str


_DETECTORS = {
    "l_red": DetectorWords(
        "Smallest perturbation (L-RED)",
        "The smallest perturbation, added to images, that carries them to a class (Xiang, Miller, "
        "Kesidis, ICASSP 2021). It sees faint patterns.",
        "1 / L2 norm of the perturbation",
        "L2 norm",
    ),
    "mask_pattern": DetectorWords(
        "Smallest mask and pattern",
        "The smallest mask through which a pattern carries images to a class (Wang et al., IEEE "
        "S&P 2019). It sees patches.",
        "1 / mask size in pixels",
        "mask pixels",
    ),
    "maximum_margin": DetectorWords(
        "Maximum margin",
        "How far a class's logit can be lifted above all others, on any image (Wang et al., IEEE "
        "S&P 2024). It needs no idea of the trigger and yields none.",
        "margin in logits",
        "",
    ),
    "l_red_uniform": DetectorWords(
        "Smallest perturbation for all classes (RED-U)",
        "As L-RED, but every source class counts the same. It sees faint patterns that work on all "
        "classes.",
        "1 / L2 norm of the perturbation",
        "L2 norm",
    ),
    "low_frequency": DetectorWords(
        "Smallest smooth perturbation",
        "The smallest perturbation of low spatial frequency. It sees smooth patterns over the "
        "whole image.",
        "1 / L2 norm of the perturbation",
        "L2 norm",
    ),
    "class_pairs": DetectorWords(
        "Class pairs by mask",
        "For each target class the source class that reaches it through a smaller mask than its "
        "other pairs suggest (L-RED eq. 14). It sees few source classes, and all-to-all attacks.",
        "expected mask size / mask size",
        "mask pixels",
    ),
    "red_p": DetectorWords(
        "Class pairs by perturbation (RED-P)",
        "The same with perturbations (L-RED eq. 2).",
        "expected norm / norm",
        "L2 norm",
    ),
    "neural_cleanse": DetectorWords(
        "Neural Cleanse",
        "The smallest mask, as Wang et al. (IEEE S&P 2019) search it.",
        "1 / mask size in pixels",
        "mask pixels",
    ),
    "expected_transferability": DetectorWords(
        "Expected transferability",
        "How often what carries one image to a class carries the others, too (Xiang, Miller, "
        "Kesidis, ICLR 2022). It is judged by itself, not against the other classes.",
        "share of images carried",
        "",
    ),
}


def detector_words(name: str) -> DetectorWords:
    """A detector's words; its bare name where it is not known."""
    return _DETECTORS.get(name, DetectorWords(name, "", "statistic", "norm"))


STOP_REASONS = {
    "misclassification_fraction_reached": "goal reached",
    "steps_done": "all steps done",
    "time_limit": "time ran out",
}


@dataclass(frozen=True)
class SampleWords:
    """How the answer of `bdscan samples` is shown; `style` is the verdict it looks like."""

    sign: str
    title: str
    meaning: str
    style: str


_SAMPLES = {
    "triggered_images_found": SampleWords(
        "✖",
        "Triggered images found",
        "More images than chance allows keep their class through suspiciously few of their pixels.",
        BACKDOOR_FOUND,
    ),
    "no_triggered_images_found": SampleWords(
        "✔",
        "No triggered images found",
        "No more images are suspicious than in a clean folder. This is evidence, not a proof.",
        NO_BACKDOOR_FOUND,
    ),
    "inconclusive": SampleWords("?", "Inconclusive", VERDICTS[INCONCLUSIVE].meaning, INCONCLUSIVE),
}


def sample_words(verdict: str) -> SampleWords:
    """The words of an answer; an unknown one is an error."""
    wrong = SampleWords("⚠", "Error: not scored", "Nothing is known about these images.", ERROR)
    return _SAMPLES.get(verdict, wrong)
