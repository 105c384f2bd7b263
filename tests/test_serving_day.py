"""What the day brings reaches the served answers: whole, in order, without a pause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from day_events import clicked, rows_over, shown
from serving_project import (
    USERS,
    Reply,
    RunningServer,
    eventually,
    publish_marked,
    running_server,
    write_project,
)
from test_serving_server import Client, K, References, load
from tiny_checkpoint import CUT_MS
from twotower.data.event_log import EventLog, open_event_log
from twotower.data.events import Event
from twotower.data.example_log.manifest import ExampleManifest, write_manifest
from twotower.data.ids import Id
from twotower.publishing.day_items import (
    add_items,
    item_vectors,
    restore_items,
    withdraw_items,
)
from twotower.publishing.delta import Delta, DeltaSpan, delta_folder, read_deltas
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.item_overlay import overlay_folder
from twotower.publishing.item_register import DayItem, read_register
from twotower.publishing.store import ModelStore
from twotower.serving.day import first_offset
from twotower.serving.metrics import Metrics
from twotower.serving.reload import Follower
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings
from twotower.serving.shared_memory import CounterBlock, SharedMemory, read_counters

DAY_MS = 86_400_000


def publish_delta(store: ModelStore, name: str, number: int, users: Sequence[Id] = USERS) -> Delta:
    """The delta `number` of a generation: new rows of users, and a vector of one item."""
    data_path = store.root.parent
    retriever = Retriever.open(data_path, name)
    item = int(retriever.encoder.items.ids[number])
    span = DeltaSpan(
        first_offset=10 * (number - 1),
        through_offset=10 * number,
        newest_event_time_ms=CUT_MS + 1000 * number,
    )
    rows = rows_over(retriever, users, [item, 5_000_000_000 + number], seed=number)
    return write_delta(data_path, retriever.base, rows, span, now_ms=number)


class Day:
    """A live generation and a follower that looks only when a test says so."""

    def __init__(self, data_path: Path, **settings: float) -> None:
        self.path = data_path
        self.store = ModelStore(data_path)
        self.name = publish_marked(self.store, 1)
        self.store.activate(self.name, force=True)
        self.base = self.store.open(self.name)
        self._memory = SharedMemory(1)
        self.served: list[tuple[int, int | None, int | None]] = []
        """Sequence, delta and offset, whenever they changed."""
        self.follower = Follower(
            data_path,
            ServingSettings(**settings),  # type: ignore[arg-type]
            Metrics(CounterBlock(self._memory.counters(0))),
            self._changed,
        )
        self.follower.tick()

    def _changed(self, follower: Follower) -> None:
        if follower.served is not None:
            retriever, sequence = follower.served.retriever, follower.served.activation.sequence
            self.served.append((sequence, retriever.delta, retriever.user_state_offset))

    def looked(self) -> Retriever:
        """What is served after one look at the day."""
        self.follower.tick_day()
        assert self.follower.served is not None
        return self.follower.served.retriever

    def publishes(self, kind: str, result: str) -> float:
        counters = read_counters(self._memory.counters(0))
        return counters.get(f'["twotower_publish_total",["{kind}","{result}"],""]', 0.0)

    def log(self, events: Sequence[Event], received_ms: int = CUT_MS) -> EventLog:
        """The project's log after an append."""
        log = open_event_log(self.path)
        log.append(events, received_ms)
        return log


@pytest.fixture
def day(tmp_path: Path) -> Day:
    return Day(tmp_path, retry_s=1e-9)


def test_deltas_are_followed_one_after_the_other(day: Day) -> None:
    before = day.looked()
    assert (before.delta, day.served) == (None, [(1, None, None)])
    publish_delta(day.store, day.name, 1)
    after = day.looked()
    assert after.delta == 1
    assert after.retrieve(USERS[0], 3).candidates != before.retrieve(USERS[0], 3).candidates
    publish_delta(day.store, day.name, 2)
    publish_delta(day.store, day.name, 3)
    assert day.looked().delta == 3
    assert day.looked().overlay.newest_event_time_ms == CUT_MS + 3000
    assert day.served == [(1, None, None), (1, 1, None), (1, 3, None)]
    assert (day.publishes("delta", "ok"), day.follower.problem) == (3, None)


def test_a_generation_goes_live_with_its_deltas_and_its_users(day: Day) -> None:
    publish_delta(day.store, day.name, 1)
    assert day.looked().delta == 1
    name = publish_marked(day.store, 2)
    for number in (1, 2):
        publish_delta(day.store, name, number)
    day.log([shown(1, USERS[0], 7)])
    day.store.activate(name, force=True)
    day.follower.tick()
    assert day.served == [(1, None, None), (1, 1, None), (2, 2, 1)]
    assert day.looked().generation == name
    day.store.roll_back()
    day.follower.tick()
    assert day.served[-1] == (3, 1, 1)


def test_what_comes_while_a_generation_is_warmed_goes_live_with_it(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = publish_marked(day.store, 2)

    def warm(retriever: Retriever, *_: object) -> Iterator[None]:
        assert retriever.generation == name
        publish_delta(day.store, name, 1)
        yield

    monkeypatch.setattr("twotower.serving.reload.warm", warm)
    day.store.activate(name, force=True)
    day.follower.tick()
    assert day.served[-1] == (2, 1, None)


def test_a_generation_goes_live_with_the_whole_of_a_long_day(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.serving.day._PIECE_EVENTS", 1)
    monkeypatch.setattr("twotower.serving.day._MAX_PIECES", 1)
    day.log([shown(number, USERS[0], number) for number in range(1, 5)])
    day.store.activate(publish_marked(day.store, 2), force=True)
    day.follower.tick()
    assert day.served[-1] == (2, None, 4)


def test_a_generation_that_is_swapped_in_meanwhile_stays(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look at the day of the old generation ends after the swap."""
    publish_delta(day.store, day.name, 1)
    name = publish_marked(day.store, 2)
    assert day.follower.served is not None
    advance = day.follower.served.day.advance

    def slow(retriever: Retriever) -> Retriever:
        newer = advance(retriever)
        day.store.activate(name, force=True)
        day.follower.tick()
        return newer

    monkeypatch.setattr(day.follower.served.day, "advance", slow)
    assert day.looked().generation == name


def test_deltas_that_were_dropped_meanwhile_are_gone_with_the_next_activation(day: Day) -> None:
    """The generation was live, then another one, then it again, between two looks."""
    for number in (1, 2):
        publish_delta(day.store, day.name, number)
    assert day.looked().delta == 2
    name = publish_marked(day.store, 2)
    day.store.activate(name, force=True)
    day.store.roll_back()
    day.follower.tick()
    assert day.served[-1] == (3, 2, None)  # still there
    shutil.rmtree(delta_folder(day.path, day.name))
    day.store.activate(name, force=True)
    day.store.roll_back()
    publish_delta(day.store, day.name, 1, USERS[:1])
    day.follower.tick()
    assert day.served[-1] == (5, 1, None)
    fresh = Retriever.open(day.path).with_deltas(read_deltas(day.path, day.base))
    for user in USERS:
        assert day.looked().retrieve(user, 5).candidates == fresh.retrieve(user, 5).candidates


@pytest.mark.parametrize("member", ["rows.bin", "manifest.json"])
def test_a_damaged_delta_is_refused_and_the_one_before_served(day: Day, member: str) -> None:
    publish_delta(day.store, day.name, 1)
    damaged = publish_delta(day.store, day.name, 2)
    publish_delta(day.store, day.name, 3)
    path = damaged.path / member
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    answer = day.looked().retrieve(USERS[0], 3)
    assert answer.delta == 1
    for _ in range(3):
        assert day.looked().retrieve(USERS[0], 3) == answer
    assert "d-000002" in (day.follower.problem or "")
    assert day.publishes("delta", "corrupt") == 1
    path.write_bytes(content)
    assert day.looked().delta == 3
    assert day.follower.problem is None


def test_what_was_refused_is_left_alone_for_a_while(tmp_path: Path) -> None:
    day = Day(tmp_path, retry_s=1000)
    first = publish_delta(day.store, day.name, 1)
    aside = first.path.rename(tmp_path / "aside")
    first.path.mkdir()
    assert day.looked().delta is None
    first.path.rmdir()
    aside.rename(first.path)
    assert day.looked().delta is None
    day.log([shown(1, USERS[0], 7)])
    assert day.looked().user_state_offset == 1  # the rest is followed still


def test_a_delta_of_another_base_is_refused(day: Day) -> None:
    foreign = Generation(day.base.path, day.base.manifest, "f" * 64)
    rows = rows_over(day.looked(), USERS)
    span = DeltaSpan(first_offset=0, through_offset=1, newest_event_time_ms=1)
    write_delta(day.path, foreign, rows, span, now_ms=1)
    assert day.looked().delta is None
    assert "publish a delta against 'g-000001'" in (day.follower.problem or "")
    assert day.publishes("delta", "rejected") == 1


def test_a_missing_delta_stops_those_behind_it(day: Day) -> None:
    publish_delta(day.store, day.name, 1)
    assert day.looked().delta == 1
    second = publish_delta(day.store, day.name, 2)
    publish_delta(day.store, day.name, 3)
    second.path.rename(delta_folder(day.path, day.name) / "lost")
    assert day.looked().delta == 1
    assert "found no delta 2" in (day.follower.problem or "")


# -- users


def test_users_actions_are_followed(day: Day) -> None:
    assert day.looked().user_state_offset is None  # nothing was ever stored
    best = day.looked().retrieve(USERS[3], 2).candidates
    log = day.log([shown(1, USERS[3], best[0].item_id), clicked(2, USERS[4], best[1].item_id)])
    after = day.looked()
    assert after.user_state_offset == 2
    assert after.retrieve(USERS[3], 1).candidates[0].item_id != best[0].item_id
    assert after.retrieve(USERS[4], 1).recent[0].item_id == best[1].item_id
    assert day.looked() is after
    log.append([shown(5, USERS[3], 1)], CUT_MS)
    assert day.looked().user_state_offset == 3


def test_what_arrived_after_the_join_cut_the_day_is_followed(day: Day) -> None:
    """Its time is before the generation's cut, and so it is in no example that was trained."""
    through = day.base.manifest.window.through_day
    assert through is not None
    examples = day.path / "examples"
    examples.mkdir()
    cut = ExampleManifest(user_id_kind="int", item_id_kind="int", event_cuts={through: 1})
    write_manifest(examples, cut)
    best = [found.item_id for found in day.looked().retrieve(USERS[3], 2).candidates]
    early = [shown(n, USERS[3], item, after_ms=-9 * 3_600_000) for n, item in enumerate(best)]
    day.log(early)
    after = day.looked()
    assert after.user_state_offset == 2
    assert after.retrieve(USERS[3], 1).candidates[0].item_id == best[0]
    assert best[1] not in [found.item_id for found in after.retrieve(USERS[3], 50).candidates]


def test_a_long_log_is_followed_in_pieces(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.serving.day._PIECE_EVENTS", 10)
    monkeypatch.setattr("twotower.serving.day._MAX_PIECES", 3)
    for start in range(0, 100, 5):
        day.log([shown(n, USERS[n % 12], n) for n in range(start, start + 5)])
    offsets = [day.looked().user_state_offset for _ in range(5)]
    assert offsets[0] is not None
    assert offsets[0] <= 30
    assert offsets[-1] == 100


def test_no_state_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    day = Day(tmp_path, user_state_events=0)
    day.log([shown(1, USERS[0], 7)])
    assert day.looked().user_state_offset is None


def test_the_first_offset_leaves_out_no_event_after_the_cut(day: Day) -> None:
    log = open_event_log(day.path)
    hours = [-30, -20, -10, -2, -0.5, 0, 3, 5]
    for number, hour in enumerate(hours):
        log.append([shown(number, USERS[0], 7)], CUT_MS + int(hour * 3_600_000))
    assert first_offset(log, CUT_MS) == 4
    assert first_offset(log, CUT_MS - 2 * DAY_MS) == 0
    assert first_offset(log, CUT_MS + DAY_MS) == len(hours)


def test_events_that_were_forgotten_start_the_state_anew(day: Day) -> None:
    log = day.log([shown(n, USERS[0], n) for n in range(3)])
    assert day.looked().user_state_offset == 3
    log.append([shown(n, USERS[0], n) for n in range(3, 9)], CUT_MS)
    log.append([shown(n, USERS[0], n) for n in range(9, 12)], CUT_MS)
    assert log.forget(9) == 9
    for _ in range(2):
        newest = day.looked()
    assert newest.user_state_offset == 12
    assert newest.user_state is not None
    assert newest.user_state.num_events == 3
    assert day.publishes("user_state", "restarted") == 1
    assert day.follower.problem is None


def test_a_damaged_log_leaves_what_is_known(day: Day) -> None:
    log = day.log([shown(1, USERS[0], 7)])
    assert day.looked().user_state_offset == 1
    log.append([shown(2, USERS[0], 8)], CUT_MS)
    log._writer.execute("UPDATE blocks SET columns = x'00' WHERE first_offset = 1")  # type: ignore[attr-defined]
    assert day.looked().user_state_offset == 1
    assert "were altered" in (day.follower.problem or "")
    publish_delta(day.store, day.name, 1)
    assert day.looked().delta == 1


# -- the real server


class DayClient(Client):
    """Checks each answer against that of the generation and the delta that it names."""

    def _check(self, user: Id, reply: Reply) -> None:
        answer = json.loads(reply.body)
        if reply.status == 200:
            delta = answer["delta"] or 0
            answer["generation"] += f"/{delta}"
            answer["sequence"] = 1000 * answer["sequence"] + delta
            body = json.dumps(answer).encode()
            reply = Reply(200, {"x-generation": answer["generation"]}, body)
        super()._check(user, reply)


def day_references(retriever: Retriever, deltas: Sequence[Delta]) -> References:
    """What each user gets from a generation with so many deltas."""
    references: References = {}
    for number in range(len(deltas) + 1):
        after = retriever.with_deltas(deltas[:number])
        answers = {user: after.retrieve(user, K).candidates for user in USERS}
        references[f"{retriever.generation}/{number}"] = {
            user: [(c.item_id, float(np.float32(c.score))) for c in found]
            for user, found in answers.items()
        }
    return references


def wait_delta(server: RunningServer, delta: int) -> None:
    eventually(lambda: {worker["delta"] for worker in server.readiness()["workers"]} == {delta})


def test_deltas_under_load_fail_mix_and_reverse_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path / "twotower-data")
    names = [publish_marked(store, number) for number in (1, 2)]
    store.activate(names[0], force=True)
    staged = ModelStore(tmp_path / "staged")
    staged.root.parent.mkdir()
    (tmp_path / "staged" / "generations").symlink_to(store.root)
    references: References = {}
    for name in names:
        deltas = [publish_delta(staged, name, number) for number in range(1, 6)]
        references |= day_references(Retriever.open(store.root.parent, name), deltas)
    folders = [delta_folder(store.root.parent, name) for name in names]
    monkeypatch.setattr("test_serving_server.Client", DayClient)
    with running_server(write_project(tmp_path), workers=2) as server:
        with load(server, references, 4) as clients:
            for name, folder in zip(names, folders, strict=True):
                folder.mkdir(parents=True)
                for number in range(1, 6):
                    path = delta_folder(tmp_path / "staged", name) / f"d-{number:06d}"
                    path.rename(folder / path.name)
                    if name == names[0]:
                        wait_delta(server, number)
                if name == names[1]:
                    server.wait_ready(store.activate(name, force=True).sequence)
            wait_delta(server, 5)
        assert [failure for client in clients for failure in client.failed][:3] == []
        assert sum(client.num_backwards for client in clients) == 0
        seen = {answer for client in clients for answer in client.answers}
        assert {(f"{names[0]}/{n}", 1000 + n) for n in range(6)} <= seen
        assert {name for name, _ in seen if name.startswith(names[1])} == {f"{names[1]}/5"}
        assert server.metric("twotower_delta_sequence") == 5
        assert server.metric("twotower_generation_info", delta="5") == 1
        assert server.metric("twotower_publish_total", kind="delta", result="ok") == 10


def test_actions_reach_all_workers_within_seconds(tmp_path: Path) -> None:
    data_path = tmp_path / "twotower-data"
    store = ModelStore(data_path)
    store.activate(publish_marked(store, 1), force=True)
    likes = '[join]\npositive_outcomes = ["like"]\n'
    with running_server(write_project(tmp_path, poll_s=0.25, more=likes), workers=2) as server:
        asked = {"user_id": USERS[3], "k": 1}

        def score_of_everything() -> dict[Id, float]:
            wanted = {"user_id": USERS[3], "k": 57, "include_seen": True}
            found = server.ask("POST", "/v1/retrieve", wanted).json()["candidates"]
            return {candidate["item_id"]: candidate["score"] for candidate in found}

        before = score_of_everything()
        for number in range(3):
            best = server.ask("POST", "/v1/retrieve", asked).json()["candidates"][0]["item_id"]
            with open_event_log(data_path) as log:
                end = log.append([clicked(number, USERS[3], best)], CUT_MS).end

            def has_arrived(end: int = end) -> bool:
                workers = server.readiness()["workers"]
                return {worker["user_state_offset"] for worker in workers} == {end}

            eventually(has_arrived, deadline_s=5.0)
            for _ in range(8):  # connections are spread over the workers
                answer = server.ask("POST", "/v1/retrieve", asked).json()
                assert answer["user_state_offset"] == end
                assert answer["candidates"][0]["item_id"] != best
        assert server.metric("twotower_user_state_offset") == 3
        assert score_of_everything() == before, "a click is no positive of this project"
        with open_event_log(data_path) as log:
            log.append([clicked(9, USERS[3], next(iter(before)), outcome="like")], CUT_MS)
        eventually(lambda: server.metric("twotower_user_state_offset") == 4)
        assert score_of_everything() != before


# -- items of the day

NEW_ITEM = 7_000_000_000


def live_encoder(day_store: ModelStore) -> tuple[Path, Generation, Encoder]:
    generation = day_store.open()
    return day_store.root.parent, generation, Encoder.of(generation)


def all_items(retriever: Retriever, user: Id = USERS[3]) -> dict[Id, float]:
    answer = retriever.retrieve(user, 1000, include_seen=True)
    return {candidate.item_id: candidate.score for candidate in answer.candidates}


def add(day: Day, *item_ids: int, genre: str = "genre 2") -> None:
    items = [DayItem(item_id=i, features={"genre": genre}) for i in item_ids]
    add_items(*live_encoder(day.store), items)


def test_new_items_are_found_with_their_features(day: Day) -> None:
    before = day.looked()
    assert before.retrieve(USERS[0], 1).items_number is None
    add(day, NEW_ITEM, NEW_ITEM + 1)
    after = day.looked()
    answer = after.retrieve(USERS[0], 100, include_seen=True)
    assert answer.items_number == 1
    found = {candidate.item_id: candidate.display for candidate in answer.candidates}
    assert found[NEW_ITEM] == {"genre": "genre 2"}
    assert set(found) - set(all_items(before)) == {NEW_ITEM, NEW_ITEM + 1}
    assert day.looked() is after


def test_withdrawn_items_are_gone_whoever_brought_them(day: Day) -> None:
    add(day, NEW_ITEM)
    publish_delta(day.store, day.name, 1)
    everything = all_items(day.looked())
    old, changed = next(iter(everything)), int(day.looked().encoder.items.ids[1])
    gone: list[Id] = [NEW_ITEM, 5_000_000_001, changed, old]
    assert set(gone) <= set(everything)
    path, _, encoder = live_encoder(day.store)
    withdraw_items(path, encoder, gone)
    day.log([clicked(1, USERS[3], NEW_ITEM), clicked(2, USERS[3], 7)])
    after = day.looked()
    assert all_items(after).keys() == everything.keys() - set(gone)
    answer = after.retrieve(USERS[3], 1)
    assert answer.items_number == 2
    assert NEW_ITEM not in [click.item_id for click in answer.recent]
    restore_items(path, encoder, gone[:3])
    assert all_items(day.looked()).keys() == everything.keys() - {old}


def test_a_later_delta_does_not_bring_a_withdrawn_item_back(day: Day) -> None:
    changed = int(day.base.array("items/ids.npy")[1])
    path, _, encoder = live_encoder(day.store)
    withdraw_items(path, encoder, [changed, 5_000_000_001])
    assert changed not in all_items(day.looked())
    publish_delta(day.store, day.name, 1)
    after = day.looked()
    assert after.delta == 1
    assert not {changed, 5_000_000_001} & set(all_items(after))


def test_an_item_of_the_day_has_its_newer_row_and_its_features(day: Day) -> None:
    """Whichever comes first: the tower takes the row of the delta and the register's features."""
    item = 5_000_000_001
    delta = publish_delta(day.store, day.name, 1)
    place = delta.rows.item_ids.tolist().index(item)
    add(day, item)
    both = day.looked()
    encoder = both.encoder
    profile = encoder.encode_item({"genre": "genre 2"})
    expected = encoder.item_vector(
        delta.rows.item_embeddings[place][None], profile, np.float32(0.0)
    )[0]
    assert _vector(both, item) == pytest.approx(expected, abs=1e-6)
    first = Retriever.open(day.path).with_deltas([delta])
    assert _vector(first, item) == pytest.approx(delta.rows.item_vectors[place])
    register = read_register(day.path)
    vectors = item_vectors(day.path, day.base, encoder, register)
    items = first.overlay.items.with_added(register, vectors)
    assert _vector(first.with_items(items), item) == pytest.approx(expected, abs=1e-6)
    alone = Retriever.open(day.path).with_items(items)
    assert _vector(alone, item) != pytest.approx(expected, abs=1e-3)
    later = alone.with_deltas([delta])
    assert _vector(later, item) == pytest.approx(expected, abs=1e-6)
    searched_anew = later.with_rows(rows_over(later, items=[9_000_000]))
    assert _vector(searched_anew, item) == pytest.approx(expected, abs=1e-6)


def _vector(retriever: Retriever, item: int) -> np.ndarray:
    """By the scores of as many queries as it has dimensions."""
    queries = np.eye(retriever.base.manifest.vector_dim, dtype=np.float32)
    found = retriever.index.search(queries, len(retriever.index))
    number = retriever.items.positions_of(np.array([item]))[0]
    return np.asarray(found.scores[found.ids == number])


def test_damaged_vectors_of_new_items_do_not_keep_withdrawn_ones(day: Day) -> None:
    add(day, NEW_ITEM)
    member = overlay_folder(day.path, day.name) / "o-000001" / "item_vectors.npy"
    member.chmod(0o644)
    member.write_bytes(member.read_bytes()[:-1])
    everything = all_items(day.looked())
    assert NEW_ITEM not in everything
    assert "o-000001" in (day.follower.problem or "")
    path, _, encoder = live_encoder(day.store)
    old = next(iter(everything))
    withdraw_items(path, encoder, [old])
    after = day.looked()
    assert all_items(after).keys() == everything.keys() - {old}
    assert after.items_number is None
    assert day.publishes("items", "corrupt") == 1


def test_the_next_generation_has_the_items_of_the_day(day: Day) -> None:
    add(day, NEW_ITEM)
    path, _, encoder = live_encoder(day.store)
    name = publish_marked(day.store, 2)
    gone = int(day.store.open(name).array("items/ids.npy")[9])
    withdraw_items(path, encoder, [gone])
    day.store.activate(name, force=True)
    day.follower.tick()
    assert day.follower.served is not None
    found = all_items(day.follower.served.retriever)
    assert NEW_ITEM in found
    assert gone not in found
    assert overlay_folder(day.path, name).is_dir()


def test_a_withdrawn_item_is_gone_from_all_workers_within_a_second(tmp_path: Path) -> None:
    data_path = tmp_path / "twotower-data"
    store = ModelStore(data_path)
    store.activate(publish_marked(store, 1), force=True)
    path, generation, encoder = live_encoder(store)
    with running_server(write_project(tmp_path, poll_s=0.25), workers=2) as server:
        asked = {"user_id": USERS[3], "k": 1}
        for _ in range(3):
            best = server.ask("POST", "/v1/retrieve", asked).json()["candidates"][0]["item_id"]
            number = withdraw_items(path, encoder, [best]).number

            def is_applied(number: int = number) -> bool:
                workers = server.readiness()["workers"]
                return {worker["items_number"] for worker in workers} == {number}

            eventually(is_applied, deadline_s=1.0)
            for _ in range(8):
                answer = server.ask("POST", "/v1/retrieve", asked).json()
                assert answer["items_number"] == number
                assert answer["candidates"][0]["item_id"] != best
        add_items(path, generation, encoder, [DayItem(item_id=NEW_ITEM)])
        asked = {"user_id": USERS[3], "k": 1000, "include_seen": True, "display": True}

        def is_found() -> bool:
            answer = server.ask("POST", "/v1/retrieve", asked).json()
            return NEW_ITEM in [candidate["item_id"] for candidate in answer["candidates"]]

        eventually(is_found)
