"""What a file's numbers may make torch hold and compute while a model is prepared.

A few bytes of a file can ask for a result that fills any memory, or for work without end, in many
ways: shapes, pads, strides, sizes, products, doublings. So not the operators are watched but what
they are made of: every call of torch's own functions is looked at before it runs, by its result's
shape on torch's meta device, which has no numbers. ONNX Runtime sees a model only after that.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ParamSpec, Protocol, TypeVar

import onnx
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from converters.errors import FormatReason, ModelFormatError
from converters.held_tensors import all_tensors, declared_bytes, subgraphs_of
from converters.validation import PROOF_IMAGES, Limits

_MAX_CALLS = 10**7
_CALL = 2**17  # multiply-adds that take as long as calling a function at all, some 5 microseconds
_PER_NUMBER = 4  # multiply-adds that take as long as computing a number of a plain result
_SMALL = 1024  # bytes of results that are not counted
_TINY = 512  # numbers of a result that is neither
_WEIGHT_COPIES = 16  # bytes that constants may take for each byte of weights: int8 -> float, twice
_IMAGE_COPIES = 32  # float32 images that a run may hold for each image that goes in
_MOST_IMAGES = 8  # times `computed_bytes` that a large fixed batch may raise the bound to
_WORK_SHARE = 16  # part of `Limits.work` that a file without weights may use
_WORK_PER_BYTE = 2**12  # multiply-adds for each byte of weights: what networks need, ten times
_CALLS, _CALLS_PER_NODE = 100_000, 10_000  # ten runs of loops of 1,000 trips

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_active: ContextVar[Budget | None] = ContextVar("active", default=None)


class _Exceeded(BaseException):
    """Passes whatever would try another way with the same file, as an Exception would not."""

    def __init__(self, message: str, reason: FormatReason) -> None:
        super().__init__(message)
        self.reason = reason


class _File(Protocol):
    @property
    def proto(self) -> onnx.ModelProto: ...
    @property
    def limits(self) -> Limits: ...


class Budget(TorchDispatchMode):
    """While it is entered, every call of torch is held to a number of bytes and of multiply-adds.

    Args:
        held_bytes: of all results that live at the same time, without what was there before.
        work: multiply-adds, or what takes as long, of all calls together.
        calls: how many calls use it up, whatever they do.

    A call that would exceed one of them is not made. The exception that ends it is no `Exception`:
    there is no other way to go on; `within_budget` turns it into a ModelFormatError.
    """

    def __init__(self, held_bytes: int, work: int, calls: int = _MAX_CALLS) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit, self._work_limit = held_bytes, work
        self._call = max(_CALL, work // calls)
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._sum = self._work = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes seconds

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """One call of torch, if it is affordable."""
        if not kwargs and _is_pointwise(func) and _is_tiny(args):
            self._spend(self._call)  # nothing else matters, and graphs may have many of them
            return func(*args)
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        if any(t.is_meta for t in tensors):
            return func(*args, **kwargs)
        if _is_view(func):
            self._spend(self._call)
            return func(*args, **kwargs)
        numbers, size = _result_size(func, args, kwargs, tensors)
        self.check(size + _columns(func, args))
        self._spend(self._call + _work(func, args, numbers, tensors))
        result = func(*args, **kwargs)
        for tensor in _tensors((result,)):
            self._note(tensor)
        return result

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > self._work_limit:
            raise _Exceeded(
                f"preparing the model takes more than {self._work_limit} multiply-adds",
                "too_much_work",
            )

    def check(self, size: int) -> None:
        """End here if a result of so many bytes does not fit beside those that are still there."""
        if self._sum + size <= self._limit:
            return
        self._held = {k: (ref, n) for k, (ref, n) in self._held.items() if not _gone(ref)}
        self._sum = sum(n for _, n in self._held.values())
        if self._sum + size > self._limit:
            raise _Exceeded(
                f"a result takes {size} bytes beside {self._sum} bytes of others; "
                f"the limit is {self._limit}",
                "result_too_large",
            )

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if size < _SMALL:
            return
        reference, before = self._held.get(storage.data_ptr(), (None, 0))
        if reference is not None and not _gone(reference):
            return  # another view of it
        self._sum += size - before
        self._held[storage.data_ptr()] = StorageWeakRef(storage), size  # type: ignore[no-untyped-call]
        self.check(0)  # for what could not be foreseen


def budget_of(file: _File) -> Budget:
    """The budget for preparing a model: what its limits say, and in proportion to its weights.

    Memory: `Limits.computed_bytes` or room for 32 times the input, at most 8 times as much, and 16
    bytes for each byte of weights. Work: a sixteenth of `Limits.work`, and all of it for a file of
    many weights; so a small file can't ask for much.
    """
    limits = file.limits
    weights = sum(declared_bytes(tensor) for tensor in all_tensors(file.proto))
    images = 4 * _IMAGE_COPIES * max((_numbers(v) for v in file.proto.graph.input), default=0)
    held = max(limits.computed_bytes, min(images, _MOST_IMAGES * limits.computed_bytes))
    work = min(limits.work, limits.work // _WORK_SHARE + _WORK_PER_BYTE * weights)
    calls = _CALLS + _CALLS_PER_NODE * _nodes(file.proto.graph)
    return Budget(held + _WEIGHT_COPIES * weights, work, calls)


def within_budget(
    function: Callable[_Parameters, _Result],
) -> Callable[_Parameters, _Result]:
    """Let a function, whose first argument is a file, run within that file's budget.

    What is called from inside of another such function shares its budget.

    Raises:
        ModelFormatError: from that function, if it exceeds the budget.
    """

    @functools.wraps(function)
    def bounded(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        if _active.get() is not None:
            return function(*args, **kwargs)
        file: Any = args[0] if args else next(iter(kwargs.values()))
        budget = budget_of(file)
        token = _active.set(budget)
        try:
            with budget:
                return function(*args, **kwargs)
        except _Exceeded as exceeded:
            raise ModelFormatError(str(exceeded), exceeded.reason) from None
        finally:
            _active.reset(token)

    return bounded


def active_budget() -> Budget | None:
    """The budget that holds at the moment."""
    return _active.get()


def _nodes(graph: onnx.GraphProto) -> int:
    """How many nodes a graph has, with those of the graphs in it."""
    inner = (g for node in graph.node for a in node.attribute for g in subgraphs_of(a))
    return len(graph.node) + sum(map(_nodes, inner))


def _gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]


def _numbers(value: onnx.ValueInfoProto) -> int:
    """How many numbers a run's input has, for 3 images at least; free dimensions count as 1."""
    dims = [max(d.dim_value, 1) for d in value.type.tensor_type.shape.dim]
    return max(dims[0], PROOF_IMAGES) * math.prod(dims[1:]) if dims else 0


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether a function of torch allocates nothing: it returns views, or works in place."""
    returns = func._schema.returns
    return all(value.alias_info is not None for value in returns)


@functools.cache
def _is_pointwise(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags


def _is_tiny(args: Sequence[Any]) -> bool:
    """Whether an elementwise function of these makes no more than `_TINY` numbers."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    if not 1 <= len(tensors) <= 2 or any(t.numel() > _TINY for t in tensors):
        return False
    return len(tensors) == 1 or tensors[0].shape == tensors[1].shape or tensors[1].ndim == 0


@functools.cache
def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


def _result_size(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: list[torch.Tensor]
) -> tuple[int, int]:
    """(numbers, bytes) of a call's results, without making them."""
    if _is_pointwise(func) and tensors:
        shape: Sequence[int] = tensors[0].shape
        if any(t.shape != shape for t in tensors[1:]):
            sizes = itertools.zip_longest(*(t.shape[::-1] for t in tensors), fillvalue=1)
            shape = [0 if 0 in size else max(size) for size in sizes]
        numbers = math.prod(shape)
        return numbers, numbers * max(t.element_size() for t in tensors)
    if func is torch.ops.aten.convolution.default:
        numbers = math.prod(_convolved(args))
        return numbers, numbers * tensors[0].element_size()
    # Those that networks are made of are told at once: torch imports much for the meta device.
    if func is torch.ops.aten.cat.default and tensors:
        numbers = sum(t.numel() for t in tensors)
        return numbers, numbers * max(t.element_size() for t in tensors)
    if func is torch.ops.aten.all.dim:
        return int(tensors[0].numel()), int(tensors[0].numel())
    if func is torch.ops.aten.addmm.default:
        numbers = int(tensors[1].shape[0] * tensors[2].shape[1])
        return numbers, numbers * tensors[1].element_size()
    if func is torch.ops.aten.max_pool2d_with_indices.default:
        numbers = math.prod(_pooled(*args))
        return 2 * numbers, numbers * (tensors[0].element_size() + 8)
    if func is torch.ops.aten.nonzero.default:
        numbers = tensors[0].numel() * tensors[0].ndim
        return numbers, numbers * 8
    if func is torch.ops.aten.repeat_interleave.Tensor:
        numbers = int(tensors[0].sum())
        return numbers, numbers * 8
    if func is torch.ops.aten._local_scalar_dense.default:
        return 0, 0
    try:
        options = dict(kwargs, device="meta") if _takes_device(func) else kwargs
        result = func(*_on_meta(args), **{k: _on_meta((v,))[0] for k, v in options.items()})
    except Exception:  # it depends on numbers (a mask): never more than what goes in; or it fails
        numbers = sum(t.numel() for t in tensors)
        return numbers, numbers * 8
    made = list(_tensors((result,)))
    return sum(t.numel() for t in made), sum(t.numel() * t.element_size() for t in made)


def _convolved(args: Sequence[Any]) -> list[int]:
    """The shape of a convolution's result; the meta device would import much for it."""
    image, weight, _, strides, padding, dilations, transposed, extra, groups = args
    shape = [len(image), weight.shape[1] * groups if transposed else len(weight)]
    for i, (size, kernel) in enumerate(zip(image.shape[2:], weight.shape[2:], strict=True)):
        stride, pad, dilation, more = (n[i % len(n)] for n in (strides, padding, dilations, extra))
        reach = dilation * (kernel - 1)
        if transposed:
            shape.append(max((size - 1) * stride - 2 * pad + reach + more + 1, 0))
        else:
            shape.append(max((size + 2 * pad - reach - 1) // stride + 1, 0))
    return shape


def _pooled(
    image: torch.Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] = (),
    pads: Any = (0,),
    *_: Any,
) -> list[int]:
    """The shape of a pool's result, or one more in each spatial dimension."""
    steps = strides or kernel
    sizes = enumerate(image.shape[-2:])
    spatial = [(n + 2 * pads[i % len(pads)]) // steps[i % len(steps)] + 1 for i, n in sizes]
    return [*image.shape[:-2], *spatial]


def _on_meta(values: Sequence[Any]) -> list[Any]:
    copies: list[Any] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            copies.append(
                torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            )
        elif isinstance(value, (tuple, list)) and any(isinstance(v, torch.Tensor) for v in value):
            copies.append(_on_meta(value))
        else:
            copies.append(value)
    return copies


def _work(func: Any, args: Sequence[Any], numbers: int, tensors: list[torch.Tensor]) -> int:
    """About how many multiply-adds a call takes."""
    name: str = func.overloadpacket.__name__
    if name == "convolution":
        image, weight, transposed, groups = args[0], args[1], args[6], args[8]
        each = int(weight[0].numel()) if len(weight) else 0
        few = groups > 1 and weight.shape[0] // groups < 8
        places = int(image.numel()) if transposed else numbers
        return places * each * (4 if few else 1)
    if name in ("mm", "bmm", "addmm", "baddbmm", "linear", "mv", "dot"):
        first = tensors[1] if name in ("addmm", "baddbmm") else tensors[0]
        return numbers * (int(first.shape[-1]) if first.ndim else 1)
    if "_pool" in name and len(args) > 1 and isinstance(args[1], (list, tuple)):
        return numbers * math.prod(args[1]) * _PER_NUMBER
    if "scaled_dot_product" in name:
        return 2 * numbers * int(args[1].shape[-2])
    return _PER_NUMBER * (numbers + sum(t.numel() for t in tensors))


def _columns(func: Any, args: Sequence[Any]) -> int:
    """Bytes that a transposed convolution takes for itself: every window of one image."""
    if func.overloadpacket.__name__ != "convolution" or not args[6]:
        return 0
    image, weight = args[0], args[1]
    places, windows = math.prod(image.shape[2:]), math.prod(weight.shape[1:])
    return int(places * windows * args[8] * image.element_size())
