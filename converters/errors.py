"""What can go wrong between a vendor's bytes and a differentiable graph."""


class ConverterError(Exception):
    """Base of every error raised by `converters`.

    Attributes:
        reason: short machine-readable word that goes into reports.
    """

    reason = "converter_error"


class ModelFormatError(ConverterError):
    """The bytes are not a valid ONNX model, or they break a limit or a safety rule."""

    reason = "invalid_model"


class NotAnImageClassifierError(ConverterError):
    """The model is valid ONNX, but its inputs or outputs are not an image classifier's."""

    reason = "not_an_image_classifier"


class UnsupportedModelError(ConverterError):
    """The graph uses something that can't be turned into differentiable torch.

    Attributes:
        operators: one line for each unsupported operator, as `domain.Name-version (count)`.
    """

    reason = "unsupported_model"

    def __init__(self, message: str, operators: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.operators = operators


class ParityError(ConverterError):
    """ONNX Runtime and TorchGraph disagree on the same images."""

    reason = "parity"
