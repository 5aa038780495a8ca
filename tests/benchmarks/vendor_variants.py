"""Every way of writing a file that breaks importers: whether this one reads it, and how fast.

    python -m tests.benchmarks.vendor_variants [WORD ...]

Only rows that contain every WORD are run. Each row makes a small network's file and holds what is
read from it against the network: "ok", "refused: ..." with the reason that a user sees, "differs"
where something that must hold does not, "crashed: ..." where no refusal came but another error, or
"not written: ..." where the exporter can't make it.
Writes vendor_variants.json.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch

from converters import ConverterError, load_classifier
from tests.benchmarks.record import write
from tests.converters.variants import converted_files as convert
from tests.converters.variants.building import HandBuilt
from tests.converters.variants.checks import check_gradient, check_rounded_variant, check_variant
from tests.converters.variants.hand_built import HAND_BUILT
from tests.converters.variants.nets import NETS, in_float64, net, patterns
from tests.converters.variants.runtime_files import LEVELS, STATIC, optimized, quantized
from tests.converters.variants.torch_files import (
    DYNAMO_OPSETS,
    SCRIPT_OPSETS,
    dynamo_exported,
    script_exported,
)

Source = onnx.ModelProto | str
Row = tuple[str, Callable[[], Source], Callable[[Source], object]]
BATCHES = {"any batch": None, "batch 1": 1, "batch 4": 4}


def exact(name: str) -> Callable[[Source], object]:
    """The check of a file that computes what the network computes."""
    return lambda model: check_variant(model, in_float64(name))


def rounded(name: str, cosine: float, dtype: type = np.float32) -> Callable[[Source], object]:
    """The check of a quantised or half-precision file."""
    return lambda m: check_rounded_variant(m, in_float64(name), cosine=cosine, dtype=dtype)


def torch_rows(folder: Path) -> Iterator[Row]:
    for name in NETS:
        for opset in SCRIPT_OPSETS:
            for words, batch in BATCHES.items():
                for fold in (True, False):
                    label = f"TorchScript {opset} {name} {words}{' folded' if fold else ''}"
                    yield (
                        label,
                        lambda n=name, o=opset, b=batch, f=fold: script_exported(
                            net(n), o, b, fold=f
                        ),
                        exact(name),
                    )
            yield (
                f"TorchScript {opset} {name} training mode",
                lambda n=name, o=opset: script_exported(net(n), o, fold=False, training=True),
                lambda model, n=name: check_training(model, n),
            )
        for opset in DYNAMO_OPSETS:
            for words, batch in BATCHES.items():
                for external in (False, True) if opset in (18, 23) else (False,):
                    label = f"dynamo {opset} {name} {words}{' external data' if external else ''}"
                    yield (
                        label,
                        lambda n=name, o=opset, b=batch, e=external: str(
                            dynamo_exported(net(n), o, folder / "model.onnx", b, external=e)
                        ),
                        exact(name),
                    )


def check_training(model: Source, name: str) -> None:
    """A file in training mode is read as for inference; it is proved on its statistics' images."""
    classifier = load_classifier(model, parity_inputs=patterns(64, seed=5))
    x = torch.from_numpy(patterns(8, seed=9))
    expected = in_float64(name)(x.double()).float()
    torch.testing.assert_close(classifier.logits(x), expected, rtol=1e-3, atol=1e-4)
    check_gradient(classifier, x, in_float64(name), 1e-3)


def runtime_rows(folder: Path) -> Iterator[Row]:
    for name in NETS:
        base = script_exported(net(name), 17)
        for level in LEVELS:
            yield (
                f"ONNX Runtime optimised, {level} {name}",
                lambda b=base, v=level: optimized(b, v, folder),
                exact(name),
            )
        for how in (*STATIC, "dynamic u8", "dynamic s8"):
            for prepare in (False, True):
                yield (
                    f"ONNX Runtime quantised, {how} {name}{' prepared' if prepare else ''}",
                    lambda b=base, h=how, p=prepare: quantized(b, h, folder, p),
                    rounded(name, cosine=0.8),
                )


def converted_rows(folder: Path) -> Iterator[Row]:
    for name in NETS:
        base = script_exported(net(name), 17)
        for keep_io, dtype in ((True, np.float32), (False, np.float16)):
            yield (
                f"float16 {name}{' with float32 ends' if keep_io else ''}",
                lambda b=base, k=keep_io: convert.half_precision(b, k),
                rounded(name, 0.98, dtype),
            )
        for opset in range(7, 27):
            first = 11 if opset > 10 else 10 if name == "residual" else 9
            yield (
                f"version_converter {opset} {name}",
                lambda n=name, o=opset, f=first: convert.at_opset(script_exported(net(n), f), o),
                exact(name),
            )
        for ir_version in range(3, 15):
            yield (
                f"IR version {ir_version} {name}",
                lambda b=base, v=ir_version: convert.labelled(b, v),
                exact(name),
            )
        makers: dict[str, Callable[[onnx.ModelProto], Source]] = {
            "opset 28 and IR 14": lambda b: convert.labelled(convert.at_opset(b, 27), 14, 28),
            "external data": lambda b: str(convert.with_external_data(b, folder / "model.onnx")),
            "unsorted nodes": convert.unsorted,
            "odd names": convert.oddly_named,
            "batch -1": lambda b: convert.declared(b, -1, -1),
            "batch undeclared": lambda b: convert.declared(b, None, None),
            "batch oddly named, output 1": lambda b: convert.declared(b, "odd name/0", 1),
        }
        for words, make in makers.items():
            yield f"{words} {name}", lambda b=base, m=make: m(b), exact(name)


def hand_built_rows() -> Iterator[Row]:
    for name, make in HAND_BUILT.items():
        yield f"hand-built: {name}", lambda m=make: m().model, lambda _, m=make: check_built(m())


def check_built(built: HandBuilt) -> None:
    check_variant(built.model, built.truth, activation=built.activation, inputs=built.inputs)


def outcome(make: Callable[[], Source], check: Callable[[Source], object]) -> str:
    """What became of a row."""
    try:
        model = make()
    except Exception as error:  # every exporter has errors of its own
        return f"not written: {_line(error)}"
    try:
        check(model)
    except ConverterError as error:
        return f"refused: {_line(error)}"
    except AssertionError as error:
        return f"differs: {_line(error)}"
    except Exception as error:  # nothing else may come out of the importer
        return f"crashed: {type(error).__name__}: {_line(error)}"
    return "ok"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def main() -> None:
    words = sys.argv[1:]
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = (
            torch_rows(folder),
            runtime_rows(folder),
            converted_rows(folder),
            hand_built_rows(),
        )
        for source in sources:
            for label, make, check in source:
                if not all(word in label for word in words):
                    continue
                begun = time.perf_counter()
                result = outcome(make, check)
                rows[label] = {"outcome": result, "seconds": round(time.perf_counter() - begun, 2)}
                print(f"{label}: {result}", file=sys.stderr, flush=True)
    counts = Counter(row["outcome"].partition(":")[0] for row in rows.values())
    print(dict(counts), file=sys.stderr)
    if not words:
        write(Path(__file__).with_suffix(".json"), {"counts": dict(counts), "rows": rows}, seed=1)


if __name__ == "__main__":
    main()
