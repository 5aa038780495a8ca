from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from converters import (
    load_classifier,
    prepare_classifier,
    read_model,
    to_torch,
)
from converters.batch_axis import with_baked_batch_size
from converters.image_input import find_image_input
from tests.converters.onnx_models import (
    TinyTransformer,
    assert_logits,
    build,
    exported,
    fixed_reshape,
    images,
    node,
    run_ort,
    small_net,
    small_nodes,
    small_weights,
)


class FixedView(torch.nn.Module):
    """Flattens with its batch size as a number, so that the exporter bakes it in."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 4, 3, stride=2)
        self.out = torch.nn.Linear(36, 5)
        self.batch = batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(x)).view(self.batch, 36))


class BatchInsideAnotherAxis(FixedView):
    """Merges the batch with the channels, its number being the inner one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x)).permute(1, 0, 2, 3).reshape(4 * self.batch, 9) * 2
        y = y.reshape(4, self.batch, 9).permute(1, 0, 2).reshape(self.batch, 36)
        return self.out(y)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_fixed_batch_is_freed(batch: int) -> None:
    module = FixedView(batch)
    model = exported(module, torch.rand(batch, 1, 8, 8))
    classifier = load_classifier(model)
    assert classifier.image_input.batch_size == batch
    assert classifier.batch_size is None
    assert classifier.rewrites == (f"batch size {batch} freed (nodes changed: 1)",)
    x = images(7, 1, 8, 8)
    single = exported(FixedView(1), torch.rand(1, 1, 8, 8))
    assert_logits(classifier, np.concatenate([run_ort(single, i[None])[0] for i in x]), x)


@pytest.mark.parametrize("batch", [1, 4])
def test_batch_merged_into_another_axis_is_freed(batch: int) -> None:
    module = BatchInsideAnotherAxis(batch)
    classifier = load_classifier(exported(module, torch.rand(batch, 1, 8, 8)))
    assert classifier.batch_size is None
    x = images(7, 1, 8, 8)
    with torch.no_grad():
        assert_logits(classifier, BatchInsideAnotherAxis(7)(torch.from_numpy(x)).numpy(), x)


class KeepsItsBatch(FixedView):
    """Picks its batch out of twice as much, by indices that are no shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x)).flatten(1)
        return self.out(torch.cat([y, -y])[torch.arange(self.batch)])


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_fixed_batch_that_can_not_be_freed_is_run_in_a_loop(batch: int) -> None:
    module = KeepsItsBatch(batch)
    classifier = load_classifier(exported(module, torch.rand(batch, 1, 8, 8)))
    assert classifier.batch_size == batch
    assert classifier.rewrites == (f"batch size {batch} could not be freed",)
    x = images(7, 1, 8, 8)
    with torch.no_grad():
        expected = KeepsItsBatch(7)(torch.from_numpy(x)).numpy()
    assert_logits(classifier, expected, x)


@pytest.mark.parametrize("how", ["constant", "concat", "initializer"])
def test_reshape_constants_are_freed_wherever_they_come_from(how: str) -> None:
    if how == "constant":
        model = fixed_reshape(helper.make_node("Constant", [], ["shape"], value_ints=[1, 4]))
    elif how == "concat":
        parts = {"one": np.int64([1]), "four": np.int64([4])}
        joined = helper.make_node("Concat", ["one", "four"], ["shape"], axis=0)
        model = fixed_reshape(joined, **parts)
    else:
        model = fixed_reshape(shape=np.int64([1, 4]))
    classifier = load_classifier(model)
    assert classifier.batch_size is None
    x = images(6, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], x)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_baked_batch_size_is_found_behind_a_free_axis(batch: int) -> None:
    """As of a file whose exporter was told of a dynamic axis that the network does not have."""
    model = exported(FixedView(batch), torch.rand(batch, 1, 8, 8))
    free = model.graph.input[0].type.tensor_type.shape.dim[0]
    free.Clear()
    free.dim_param = "N"
    graph, declared = to_torch(model), find_image_input(list(model.graph.input))
    assert declared.batch_size is None
    assert with_baked_batch_size(model, graph, declared).batch_size == batch


def test_no_batch_size_is_baked_into_a_network_of_any() -> None:
    model = small_net()
    declared = find_image_input(list(model.graph.input))
    assert with_baked_batch_size(model, to_torch(model), declared) == declared


class Attention(torch.nn.Module):
    """A class token, then attention with the batch first (timm) or second (torch's own layers)."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = torch.nn.Conv2d(1, 8, 4, 4)
        self.token = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.qkv = torch.nn.Linear(8, 24)
        self.head = torch.nn.Linear(8, 5)
        self.batch_first = batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(batch, -1, -1), tokens], 1)
        if self.batch_first:
            qkv = self.qkv(tokens).reshape(batch, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
            mixed = (qkv[0] @ qkv[1].transpose(-2, -1)).softmax(-1) @ qkv[2]
            return self.head(mixed.transpose(1, 2).reshape(batch, 5, 8)[:, 0])
        q, k, v = self.qkv(tokens.transpose(0, 1)).chunk(3, -1)
        q, k, v = (t.reshape(5, batch * 2, 4).transpose(0, 1) for t in (q, k, v))
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(mixed.transpose(0, 1).reshape(5, batch, 8)[0])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_with_a_class_token_is_freed(batch: int, batch_first: bool) -> None:
    module = Attention(batch_first).eval()
    classifier = load_classifier(exported(module, torch.rand(batch, 1, 8, 8)))
    assert classifier.batch_size is None
    x = images(5, 1, 8, 8)
    with torch.no_grad():
        assert_logits(classifier, module(torch.from_numpy(x)).numpy(), x)


def test_long_graphs_of_a_fixed_batch_are_prepared_in_linear_time() -> None:
    count = 2_000
    chain = [node("Relu", f"t{i}", f"t{i + 1}") for i in range(count)]
    reshape = helper.make_node("Reshape", [f"t{count}", "shape"], ["y"])
    weights = {"shape": np.int64([1, 64])}
    model = build([*chain, reshape], {"t0": (1, 1, 8, 8)}, ["y"], weights)
    assert prepare_classifier(read_model(model)).batch_size is None


def test_many_fixed_reshapes_are_freed_in_linear_time() -> None:
    """Four times as many take at most eight times as long, and none loses its place."""
    seconds = []
    for count in (1_000, 4_000):
        shapes = {f"s{i}": np.int64([1, 64] if i % 2 else [1, 8, 8]) for i in range(count)}
        nodes = [
            helper.make_node("Reshape", [f"t{i}", f"s{i}"], [f"t{i + 1}"]) for i in range(count)
        ]
        file = read_model(build(nodes, {"t0": (1, 1, 8, 8)}, [f"t{count}"], shapes))
        begun = time.process_time()
        classifier = prepare_classifier(file)
        seconds.append(time.process_time() - begun)
        assert classifier.rewrites == (f"batch size 1 freed (nodes changed: {count})",)
    assert seconds[1] < 8 * seconds[0] + 0.2


@pytest.mark.parametrize("batch", [1, 2])
def test_torchs_own_transformer_layer_is_freed(batch: int) -> None:
    """It merges tokens and batch into one axis, with the batch inside."""
    module = TinyTransformer().eval()
    classifier = load_classifier(exported(module, torch.rand(batch, 1, 8, 8)))
    assert classifier.batch_size is None
    x = images(5, 1, 8, 8)
    with torch.no_grad():
        assert_logits(classifier, module(torch.from_numpy(x)).numpy(), x)


def test_declared_batch_alone_is_freed_without_touching_nodes() -> None:
    model = small_net(shape=(1, 1, 8, 8))
    classifier = load_classifier(model)
    assert classifier.rewrites == ("batch size 1 freed",)
    x = images(3, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], x)


def test_results_that_do_not_tell_images_apart_prove_nothing() -> None:
    model = fixed_reshape(shape=np.int64([1, 4]))
    for tensor in model.graph.initializer:
        if tensor.name == "fc":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((5, 4), np.float32), "fc"))
    assert prepare_classifier(read_model(model)).batch_size == 1


def test_results_that_mix_images_are_not_freed() -> None:
    """Each image minus the mean of its batch: shapes fit at any batch size, numbers do not."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["middle"], axes=[0]),
        helper.make_node("Sub", ["x", "middle"], ["centred"]),
        helper.make_node("Add", ["centred", "x"], ["mixed"]),
    ]
    rest = small_nodes()
    rest[0].input[0] = "mixed"
    model = build([*nodes, *rest], {"x": (1, 1, 8, 8)}, ["logits"], small_weights())
    classifier = load_classifier(model)
    assert classifier.batch_size == 1
    x = images(5, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], x)
