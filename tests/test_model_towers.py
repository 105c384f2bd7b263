"""Effect tests of the towers, and of their ONNX graphs against them."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from twotower.model.export import export_item_tower, export_user_tower
from twotower.model.folded_tower import FoldedTower
from twotower.model.settings import ModelSettings
from twotower.model.towers import Features, FeatureShape, History, TwoTower

SETTINGS = ModelSettings(
    vector_dim=6, id_dim=4, history_dim=5, feature_dim=3, hidden=(7,), init_std=1.0, id_init_std=1.0
)
USER = FeatureShape(num_categorical=2, num_numeric=1, num_multi=0, num_rows=9)
ITEM = FeatureShape(num_categorical=1, num_numeric=0, num_multi=2, num_rows=11)
BARE = FeatureShape(num_categorical=0, num_numeric=0, num_multi=0, num_rows=0)
SIZE, WIDTH = 5, 3


def two_tower(
    user: FeatureShape = USER, item: FeatureShape = ITEM, settings: ModelSettings = SETTINGS
) -> TwoTower:
    return TwoTower.create(
        settings,
        user_shape=user,
        item_shape=item,
        num_user_rows=10,
        num_item_rows=12,
        generator=torch.Generator().manual_seed(4),
    )


def features(shape: FeatureShape, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    multi = rng.integers(-1, max(shape.num_rows, 1), (SIZE, shape.num_multi, WIDTH))
    multi[:, :, 0] = np.abs(multi[:, :, 0])
    return Features(
        torch.from_numpy(rng.integers(0, max(shape.num_rows, 1), (SIZE, shape.num_categorical))),
        torch.from_numpy(rng.random((SIZE, 2 * shape.num_numeric), np.float32)),
        torch.from_numpy(multi),
    )


def history() -> History:
    return History(torch.tensor([1, 2, 3, 3, 5]), torch.tensor([0, 2, 2, 4, 5]))


IDS = torch.tensor([0, 1, 2, 3, 9])


def run(graph: bytes, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert {part.name for part in session.get_inputs()} == set(inputs)
    vectors: npt.NDArray[np.float32] = session.run(["vector"], inputs)[0]
    return vectors


def pooled(model: TwoTower) -> npt.NDArray[np.float32]:
    table = model.tables["history"].weight.numpy()
    bags = [[1, 2], [], [3, 3], [5], []]
    nothing = np.zeros(5, np.float32)
    return np.stack([table[bag].sum(0) / len(bag) ** 0.5 if bag else nothing for bag in bags])


def inputs(values: Features, **rows: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    named = {name: part.numpy() for name, part in values._asdict().items() if part.shape[1]}
    return {**named, **rows}


def test_vectors_have_unit_length() -> None:
    vectors, _ = two_tower().encode_users(IDS, features(USER), history())
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(SIZE))


def test_every_input_moves_the_vector() -> None:
    model, plain = two_tower(), features(USER)
    base, _ = model.encode_users(IDS, plain, history())
    others = [
        model.encode_users(IDS.flip(0), plain, history()),
        model.encode_users(IDS, plain._replace(categorical=plain.categorical.flip(0)), history()),
        model.encode_users(IDS, plain._replace(numeric=plain.numeric + 1), history()),
        model.encode_users(IDS, plain, History(torch.tensor([7] * 5), history().offsets)),
    ]
    for changed, _ in others:
        assert not torch.allclose(base[0], changed[0])


def test_pooling_by_the_root_lets_a_longer_history_weigh_more() -> None:
    mean = two_tower(settings=msgspec.structs.replace(SETTINGS, history_pooling="mean"))
    root = two_tower(settings=msgspec.structs.replace(SETTINGS, history_pooling="sqrt"))
    plain, past = features(USER), history()
    by_mean, _ = mean.encode_users(IDS, plain, past)
    by_root, _ = root.encode_users(IDS, plain, past)
    single = torch.tensor([1, 3, 4])  # empty histories and those of one item agree
    torch.testing.assert_close(by_mean[single], by_root[single])
    assert not torch.allclose(by_mean[0], by_root[0])


def test_the_skip_reaches_the_output() -> None:
    plain = two_tower(settings=msgspec.structs.replace(SETTINGS, skip=False))
    skipping = two_tower()
    values = features(USER)
    first, _ = plain.encode_users(IDS, values, history())
    second, _ = skipping.encode_users(IDS, values, history())
    assert len(skipping.dense_parameters()) == len(plain.dense_parameters()) + 2
    assert not torch.allclose(first, second)


def test_padding_of_a_multi_valued_feature_has_no_effect() -> None:
    model, values = two_tower(), features(ITEM)
    narrow = values.multi[:, :, :1]
    padded = torch.cat([narrow, torch.full_like(narrow, -1)], dim=2)
    first, _ = model.encode_items(IDS, values._replace(multi=narrow))
    second, _ = model.encode_items(IDS, values._replace(multi=padded))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("shape", [USER, ITEM, BARE])
def test_the_user_graph_equals_the_tower(shape: FeatureShape) -> None:
    model, values = two_tower(user=shape), features(shape)
    expected, _ = model.encode_users(IDS, values, history())
    graph = export_user_tower(model, shape, has_history=True, multi_width=WIDTH)
    ids = model.tables["user_id"].weight.numpy()[IDS.numpy()]
    found = run(graph, inputs(values, id_embedding=ids, history_embedding=pooled(model)))
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)


def test_a_model_without_history_has_no_such_input() -> None:
    settings = ModelSettings(vector_dim=6, id_dim=4, hidden=(), feature_dim=3, history_length=0)
    model, values = two_tower(settings=settings), features(USER)
    expected, lookups = model.encode_users(IDS, values, None)
    assert len(lookups) == 2
    graph = export_user_tower(model, USER, has_history=False, multi_width=WIDTH)
    ids = model.tables["user_id"].weight.numpy()[IDS.numpy()]
    found = run(graph, inputs(values, id_embedding=ids))
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [USER, ITEM, BARE])
def test_the_item_graph_equals_the_tower(shape: FeatureShape) -> None:
    model, values = two_tower(item=shape), features(shape)
    expected, _ = model.encode_items(IDS, values)
    graph = export_item_tower(model, shape, multi_width=WIDTH)
    ids = model.tables["item_id"].weight.numpy()[IDS.numpy()]
    found = run(graph, inputs(values, id_embedding=ids))
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6)])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shape", [USER, BARE])
def test_folding_what_is_frozen_changes_neither_vector_nor_gradient(
    hidden: tuple[int, ...], skip: bool, shape: FeatureShape
) -> None:
    settings = msgspec.structs.replace(SETTINGS, hidden=hidden, skip=skip)
    model, past = two_tower(shape, settings=settings), history()
    for layer in model.user_tower.linear_layers():
        layer.bias.data.uniform_(-1, 1)
    model.freeze_all_but("user_id")
    weights = torch.arange(SIZE * settings.vector_dim).reshape(SIZE, -1).float()
    expected, (ids, *_) = model.encode_users(IDS, features(shape), past)
    (expected * weights).sum().backward()
    tower = FoldedTower(model.user_tower, settings.id_dim)
    rest, _ = model.user_inputs(features(shape), past)
    folded = tower.fold(torch.cat(rest, 1)).take(torch.arange(SIZE))
    lookup = model.tables["user_id"].lookup(IDS)
    found = tower.forward(lookup.embed(), folded)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert ids._values.grad is not None
    torch.testing.assert_close(lookup._values.grad, ids._values.grad, atol=1e-5, rtol=1e-5)


def test_the_same_parameters_give_the_same_bytes() -> None:
    first, second = (export_item_tower(two_tower(), ITEM, multi_width=WIDTH) for _ in range(2))
    assert first == second


def identity_settings(**changes: Any) -> ModelSettings:
    settings = {"id_dim": 6, "history_dim": 6, "linear_start": "identity", **changes}
    return msgspec.convert({**msgspec.to_builtins(SETTINGS), **settings}, ModelSettings)


@pytest.mark.parametrize("changes", [{"hidden": [], "skip": False}, {"skip": True}])
@pytest.mark.parametrize("user", [USER, BARE])
def test_an_identity_adds_up_the_embeddings_and_leaves_the_features_random(
    changes: dict[str, Any], user: FeatureShape
) -> None:
    settings = identity_settings(**changes)
    model = two_tower(user, ITEM, settings)
    random = two_tower(user, ITEM, msgspec.structs.replace(settings, linear_start="random"))
    for side, num_added in (("user_tower", 2), ("item_tower", 1)):
        tower, drawn = getattr(model, side), getattr(random, side)
        linear = tower.skip or tower.layers[0]
        width = num_added * 6
        inputs = torch.randn(3, linear.in_features)
        inputs[:, width:] = 0
        expected = inputs[:, :width].reshape(3, num_added, 6).sum(1)
        torch.testing.assert_close(linear(inputs), expected)
        assert torch.equal(
            linear.weight[:, width:], (drawn.skip or drawn.layers[0]).weight[:, width:]
        )
        if tower.skip is not None:
            assert torch.equal(tower.layers[0].weight, drawn.layers[0].weight)


def test_without_a_history_the_identity_is_of_the_id_alone() -> None:
    settings = identity_settings(hidden=[], skip=False, history_length=0, history_dim=3)
    model = two_tower(BARE, BARE, settings)
    rows = model.tables["user_id"].weight[IDS]
    vectors, _ = model.encode_users(IDS, features(BARE), None)
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(rows, dim=1))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"history_table": "item_id", "history_dim": 5, "linear_start": "random"}, "found 5"),
        ({"skip": False, "hidden": [7]}, "found no linear map"),
        ({"id_dim": 4}, "found 4 and 6"),
        ({"history_dim": 4}, "found 6 and 4"),
    ],
)
def test_tables_and_maps_that_do_not_fit_are_refused(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=found):
        identity_settings(**changes)
