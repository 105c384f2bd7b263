"""The Milvus engine against a real server: the contract, and what is particular to a server."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from collector_project import free_port
from milvus_project import running_milvus
from tiny_checkpoint import tiny_checkpoint
from twotower.errors import CorruptArtifact, NotReady
from twotower.index import Items, choose_index, open_index
from twotower.index.contract import IndexContract, random_items
from twotower.index.exact import ExactIndex
from twotower.index.frozen import FrozenIndex
from twotower.index.interface import FloatArray, IntArray, VectorIndex
from twotower.index.milvus import Milvus, Remote, point_alias
from twotower.index.milvus_server import connect, drop_orphans
from twotower.index.settings import IndexSettings, MilvusSettings
from twotower.index.tuning import ann_recall
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore

for package in ("pymilvus", "milvus_lite"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make install-all", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_milvus(tmp_path_factory.mktemp("milvus") / "data", free_port()) as uri:
        yield uri


@pytest.fixture
def client(server: str) -> Any:
    return connect(server)


class TestMilvus(IndexContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: str) -> None:
        self.settings = MilvusSettings(uri=server, prefix="contract")

    def build(self, ids: IntArray, vectors: FloatArray) -> VectorIndex:
        index = FrozenIndex.build(Milvus(self.settings), ids, vectors, min_native_items=1)
        index.effort = index.efforts()[-1]
        return index


def built(
    uri: str, generation: str, prefix: str = "shop", when_lost: Any = "refuse"
) -> VectorIndex:
    milvus = MilvusSettings(uri=uri, prefix=prefix, when_lost=when_lost)
    settings = IndexSettings(engine="milvus", milvus=milvus)
    return choose_index(Items(*random_items(1200), generation=generation), settings, 100).built


def test_a_collection_a_generation_and_no_orphan_after_the_next_publish(
    server: str, client: Any
) -> None:
    settings = MilvusSettings(uri=server, prefix="shop")
    for name in ("g-000001", "g-000002", "g-000003"):
        built(server, name)
    built(server, "g-000001", prefix="shop_two")
    built(server, "g-000003")  # once more: what a failed publish left is replaced
    assert drop_orphans(settings, ["g-000001", "g-000003"]) == ["shop_g_000002"]
    left = set(client.list_collections())
    assert {"shop_g_000001", "shop_g_000003", "shop_two_g_000001"} <= left
    assert "shop_g_000002" not in left


def test_the_alias_moves_with_the_activation(server: str, client: Any, tmp_path: Path) -> None:
    for name in ("g-000001", "g-000002"):
        built(server, name, prefix="alias").save(tmp_path / name)
        assert point_alias(tmp_path / name, "alias") == "alias_live"
        live = client.describe_alias("alias_live")["collection_name"]
        assert live == f"alias_{name.replace('-', '_')}"
    assert client.search("alias_live", random_items(1)[1], limit=3)[0]


def test_an_index_of_another_engine_moves_no_alias(tmp_path: Path) -> None:
    ExactIndex.build(*random_items(3)).save(tmp_path / "exact")
    assert point_alias(tmp_path / "exact", "alias") is None


def test_a_collection_that_is_gone_or_another_is_not_loaded(
    server: str, client: Any, tmp_path: Path
) -> None:
    built(server, "g-000001", prefix="gone").save(tmp_path / "index")
    client.drop_collection("gone_g_000001")
    with pytest.raises(NotReady, match="does not have collection 'gone_g_000001'"):
        open_index(tmp_path / "index")
    Milvus(MilvusSettings(uri=server, prefix="gone"), "g-000001").build(random_items(5)[1], 0)
    with pytest.raises(CorruptArtifact, match="expected 1200 items of 16"):
        open_index(tmp_path / "index")


def test_a_collection_that_cannot_be_filled_is_dropped(
    server: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twotower.index import milvus_server

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(milvus_server, "_upsert", die)
    with pytest.raises(KeyboardInterrupt):
        built(server, "g-000001", prefix="torn")
    assert "torn_g_000001" not in client.list_collections()


def test_batches_are_sent_again_when_the_server_fails_for_a_moment(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pymilvus

    from twotower.index import milvus_server

    failures = [True, True]
    upsert = pymilvus.MilvusClient.upsert

    def flaky(self: Any, *arguments: Any) -> Any:
        if failures and failures.pop():
            raise pymilvus.exceptions.MilvusException(1, "busy")
        return upsert(self, *arguments)

    monkeypatch.setattr(pymilvus.MilvusClient, "upsert", flaky)
    monkeypatch.setattr(milvus_server, "_FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(milvus_server, "_BATCH_BYTES", 16 * 4 * 500)
    index = built(server, "g-000001", prefix="flaky")
    assert not failures
    assert len(index) == 1200


def test_a_lost_server_is_one_clear_error_or_a_counted_scan(tmp_path: Path) -> None:
    ids, vectors = random_items(1200)
    exact = ExactIndex.build(ids, vectors).search(vectors[:5], 10)
    with running_milvus(tmp_path / "data", free_port()) as uri:
        refusing = built(uri, "g-000001", "refuse")
        scanning = built(uri, "g-000001", "scan", when_lost="scan")
        refusing.save(tmp_path / "index")
        assert ann_recall(refusing.search(vectors[:5], 10), exact) > 0.9
    with pytest.raises(NotReady, match="did not do what was asked"):
        refusing.search(vectors[:5], 10)
    found = scanning.search(vectors[:5], 10)
    assert (found.ids == exact.ids).all()
    assert np.allclose(found.scores, exact.scores, atol=1e-5)
    assert isinstance(scanning, FrozenIndex)
    assert isinstance(scanning.native, Remote)
    assert (scanning.lost_searches, scanning.fork().lost_searches) == (1, 1)
    assert (refusing.lost_searches, ExactIndex.build(ids, vectors).lost_searches) == (0, 0)
    with pytest.raises(NotReady, match="did not do what was asked"):
        open_index(tmp_path / "index")


def test_a_generation_is_published_activated_and_pruned_with_its_collection(
    server: str, client: Any, tmp_path: Path
) -> None:
    milvus = MilvusSettings(uri=server, prefix="life")
    index = IndexSettings(engine="milvus", milvus=milvus)
    store = ModelStore(tmp_path)
    names = []
    for _ in range(2):
        checkpoint = tiny_checkpoint(num_items=1100, num_users=30)
        names.append(publish(checkpoint, store, index=index).name)
        choice = msgspec.json.decode(store.open(names[-1]).file("index_choice.json").read_bytes())
        assert choice["chosen"] == "milvus"
        assert choice["trials"][0]["reached"]
    store.activate(names[1], force=True)
    assert point_alias(store.open(names[1]).file("index"), "life") == "life_live"
    assert client.describe_alias("life_live")["collection_name"] == "life_g_000002"
    vectors = store.open(names[1]).array("item_vectors.npy")
    opened = open_index(store.open(names[1]).file("index"))
    assert (opened.search(np.ascontiguousarray(vectors[:5]), 5).ids >= 0).all()
    assert drop_orphans(milvus, names[1:]) == ["life_g_000001"]
