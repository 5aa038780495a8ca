"""What can go wrong between a vendor's bytes and a differentiable graph."""

from __future__ import annotations

from typing import Literal, get_args

FormatReason = Literal[
    "ambiguous",
    "cycle",
    "declared_size_mismatch",
    "duplicate_assignment",
    "external_data_entry",
    "external_data_link",
    "external_data_missing",
    "external_data_path",
    "external_data_range",
    "file_too_large",
    "incomplete",
    "input_too_large",
    "invalid_model",
    "invalid_text",
    "missing_tensor",
    "negative_dimension",
    "result_too_large",
    "too_deep",
    "too_many_initializers",
    "too_many_nodes",
    "too_many_outputs",
    "too_much_work",
    "trip_count",
    "truncated_or_not_onnx",
    "unknown_data_type",
    "unreadable_file",
    "weights_too_large",
]
"""Why a file is refused:

ambiguous: two of what there may be one of (attributes, operator sets, names, data), which parsers
    resolve differently.
cycle: a tensor, or a function, depends on itself.
declared_size_mismatch: a tensor holds other bytes than its type and dimensions declare.
duplicate_assignment: a tensor is computed twice, or computed over an input or a weight.
external_data_entry: unknown or repeated keys, or data both inside and outside of the file.
external_data_link: a link, hard or symbolic, or no regular file.
external_data_missing: no such file beside the model, or one that can't be opened.
external_data_path: anything but a plain file name.
external_data_range: offset and length lie outside of the file, or tensors overlap.
file_too_large: over `Limits.file_bytes`.
incomplete: no graph, no nodes, no outputs or no operator set.
input_too_large: over `Limits.input_batch` or `Limits.input_numbers`.
invalid_model: anything else that no exporter writes.
invalid_text: a name that is empty or not valid UTF-8.
missing_tensor: nothing computes a tensor that is read.
negative_dimension: of a tensor.
result_too_large: a computed tensor, or all of them together, over `Limits.computed_bytes`.
too_deep: graphs in graphs, or functions in functions, over `Limits.depth`.
too_many_initializers, too_many_nodes, too_many_outputs: over the limit of that name; nodes are
    counted with those of subgraphs, and of functions at each of their calls.
too_much_work: over `Limits.work`.
trip_count: a loop over `Limits.trips`.
truncated_or_not_onnx: not the bytes of an ONNX file, or not all of them.
unknown_data_type: of a tensor.
unreadable_file: a folder, a pipe, or a file that may not be read.
weights_too_large: declared bytes of all tensors over `Limits.tensor_bytes`.
"""

FORMAT_REASONS: tuple[str, ...] = get_args(FormatReason)
_MAX_MESSAGE = 600  # characters; names in a file may have any length


class _Reason:
    """The reason of an error: that of its cause, if it has one, else its own, else its class's.

    So an operator that was stopped by a limit keeps the limit's reason.
    """

    def __init__(self, word: str) -> None:
        self._word = word

    def __get__(self, error: ConverterError | None, owner: type[ConverterError]) -> str:
        if error is None:
            return self._word
        cause = error.__cause__
        if isinstance(cause, ConverterError):
            return cause.reason
        return error.own_reason or self._word


class ConverterError(Exception):
    """Base of every error raised by `converters`. A long message is cut in the middle.

    Attributes:
        reason: short machine-readable word that goes into reports.
        own_reason: a word that is more exact than the class's, or None.
    """

    reason = _Reason("converter_error")
    own_reason: str | None = None

    def __init__(self, message: str) -> None:
        if len(message) > _MAX_MESSAGE:
            half = _MAX_MESSAGE // 2
            message = f"{message[:half]} ... {message[-half:]}"
        super().__init__(message)


class ModelFormatError(ConverterError):
    """The bytes are not a valid ONNX model, or they break a limit or a safety rule."""

    reason = _Reason("invalid_model")

    def __init__(self, message: str, reason: FormatReason = "invalid_model") -> None:
        super().__init__(message)
        self.own_reason = reason


class NotAnImageClassifierError(ConverterError):
    """The model is valid ONNX, but its inputs or outputs are not an image classifier's."""

    reason = _Reason("not_an_image_classifier")

    def __init__(self, message: str, reason: FormatReason | None = None) -> None:
        super().__init__(message)
        self.own_reason = reason


class UnsupportedModelError(ConverterError):
    """The graph uses something that can't be turned into differentiable torch.

    Attributes:
        operators: one line for each unsupported operator, as `domain.Name-version (count)`.
    """

    reason = _Reason("unsupported_model")

    def __init__(self, message: str, operators: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.operators = operators


class ParityError(ConverterError):
    """ONNX Runtime and TorchGraph disagree on the same images."""

    reason = _Reason("parity")
