"""Non-maximum suppression."""

from __future__ import annotations

import torch

from converters.ops._values import ints
from converters.registry import op


@op("NonMaxSuppression", since=10)
def non_max_suppression(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    max_output_boxes_per_class: torch.Tensor | None = None,
    iou_threshold: torch.Tensor | None = None,
    score_threshold: torch.Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> torch.Tensor:
    """The best boxes of each image and class that don't overlap a better one too much.

    Args:
        boxes: (N, boxes, 4): y1, x1, y2, x2, or with `center_point_box` x, y, width, height.
        scores: (N, classes, boxes).

    Returns:
        (found, 3): image, class and box, int64, on the CPU.
    """
    most = 0 if max_output_boxes_per_class is None else ints(max_output_boxes_per_class)[0]
    overlap = 0.0 if iou_threshold is None else float(iou_threshold.reshape(()))
    least = None if score_threshold is None else float(score_threshold.reshape(()))
    corners = _corners(boxes.detach().float().cpu(), bool(center_point_box))
    known = scores.detach().cpu()
    found = [
        (image, label, box)
        for image in range(known.shape[0])
        for label in range(known.shape[1])
        for box in _kept(corners[image], known[image, label], most, overlap, least)
    ]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)


def _corners(boxes: torch.Tensor, by_centre: bool) -> torch.Tensor:
    """Boxes as (..., 4): lower and upper bound of one dimension, then of the other."""
    if by_centre:
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        low, high = centre - half, centre + half
    else:
        low = torch.minimum(boxes[..., :2], boxes[..., 2:])
        high = torch.maximum(boxes[..., :2], boxes[..., 2:])
    return torch.cat((low, high), dim=-1)


def _kept(
    corners: torch.Tensor, scores: torch.Tensor, most: int, overlap: float, least: float | None
) -> list[int]:
    """Indices of the boxes that stay, by falling score; of equal ones the first comes first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    if least is not None:
        order = order[scores[order] > least]
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[_overlaps(corners[best], corners[order]) <= overlap]
    return kept


def _overlaps(box: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union of a box (4,) with others (n, 4); 0 for boxes without an area."""
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    areas = (others[:, 2:] - others[:, :2]).prod(dim=1)
    own = (box[2:] - box[:2]).prod()
    usable = (common > 0) & (areas > 0) & (own > 0)
    return torch.where(usable, common / (own + areas - common), torch.zeros_like(common))
