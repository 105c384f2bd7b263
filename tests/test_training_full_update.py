"""The full update on a log whose right answer is known."""

from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from toy import NUM_ITEMS, NUM_USERS, group_of, write_project
from twotower.checkpoint import Checkpoint, Trained
from twotower.config import Project
from twotower.data.days import ImportedData, event_digest, exact_shuffle
from twotower.data.importing import import_tables
from twotower.errors import ConfigError, LineageError
from twotower.model.settings import ModelSettings
from twotower.publishing.trainer_vectors import trainer_item_vectors, trainer_user_vectors
from twotower.training import training_pass
from twotower.training.base_model import train_base_model
from twotower.training.full_update import run_full_update
from twotower.training.settings import PassOrder, TrainingSettings
from twotower.training.training_pass import AfterEpoch, check_trained_once, pass_order

Arrays = dict[str, npt.NDArray[np.generic]]
DAYS = ("2024-03-01", "2024-03-02", "2024-03-03")


class Lineage:
    """The toy log with its base model, and full updates on demand."""

    def __init__(self, folder: Path, *, history: bool = True, num_days: int = 3) -> None:
        self.project: Project = write_project(folder, history=history, num_days=num_days)
        import_tables(self.project)
        self.data = ImportedData.open(self.project.data_path)
        self.base = self.train_base()

    def train_base(
        self,
        training: TrainingSettings | None = None,
        after_epoch: AfterEpoch | None = None,
    ) -> Checkpoint:
        return train_base_model(
            self.data,
            users=self.project.users,
            items=self.project.items,
            model=self.project.model,
            training=training or self.project.training,
            after_epoch=after_epoch,
        )

    def full(
        self,
        parent: Checkpoint,
        day: str,
        training: TrainingSettings | None = None,
        model: ModelSettings | None = None,
    ) -> Checkpoint:
        return run_full_update(
            parent,
            self.data,
            day,
            model=model or self.project.model,
            training=training or self.project.training,
        )


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    return Lineage(tmp_path_factory.mktemp("toy"))


def own_group_share(state: Checkpoint) -> float:
    """Share of the ten best items that are of the user's own group; a quarter by chance."""
    return own_group_shares(state, np.arange(NUM_USERS), np.arange(NUM_ITEMS))


def own_group_shares(
    state: Checkpoint, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]
) -> float:
    """The same for some users, among some items only; both are positions."""
    user_vectors = trainer_user_vectors(state, users)
    item_vectors = trainer_item_vectors(state, items)
    best = np.argsort(-user_vectors @ item_vectors.T, axis=1)[:, :10]
    item_groups = np.array([group_of(item) for item in state.items.decode(items)])
    user_groups = np.array([group_of(user) for user in state.users.decode(users)])
    return float((item_groups[best] == user_groups[:, None]).mean())


def assert_equal_arrays(first: Arrays, second: Arrays) -> None:
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


@pytest.mark.parametrize("loss", ["listwise", "pointwise", "pairwise_hinge", "pairwise_logistic"])
def test_every_loss_learns_the_known_answer(lineage: Lineage, loss: str) -> None:
    training = msgspec.structs.replace(lineage.project.training, loss=loss)
    state = lineage.train_base(training)
    for day in DAYS:
        state = lineage.full(state, day, training)
    assert own_group_share(state) > 0.6


def test_it_counts_each_of_the_days_events_once(lineage: Lineage) -> None:
    state = lineage.full(lineage.base, DAYS[0])
    entry = lineage.data.day_entry(DAYS[0])
    trained = state.meta.trained
    assert (trained.rows, trained.distinct_event_ids) == (entry.positives, entry.positives)
    assert trained.digest == entry.positives_digest
    assert state.meta.window.cut_ms == entry.end_ms


def test_a_row_swapped_for_a_copy_of_another_is_found() -> None:
    ids = np.arange(10, dtype=np.uint64)
    swapped = ids.copy()
    swapped[3] = swapped[4]

    def trained(event_ids: npt.NDArray[np.uint64]) -> Trained:
        return Trained(
            rows=len(event_ids),
            distinct_event_ids=len(np.unique(event_ids)),
            digest=event_digest(event_ids),
            epochs=1,
            steps=1,
            loss=0.0,
            seconds=0.0,
            examples_per_s=0.0,
        )

    check_trained_once(trained(ids), rows=10, digest=event_digest(ids))
    for wrong in (swapped, ids[:-1], np.append(ids[:-1], np.uint64(77))):
        with pytest.raises(LineageError, match="each once"):
            check_trained_once(trained(wrong), rows=10, digest=event_digest(ids))


def test_a_pass_that_repeats_an_example_and_leaves_one_out_is_refused(
    lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffle_with_a_copy(n: int, seed: int) -> npt.NDArray[np.int64]:
        order = exact_shuffle(n, seed)
        order[0] = order[1]
        return order

    monkeypatch.setattr(training_pass, "exact_shuffle", shuffle_with_a_copy)
    with pytest.raises(LineageError, match="each once"):
        lineage.full(lineage.base, DAYS[0])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(lineage: Lineage) -> None:
    first = lineage.full(lineage.base, DAYS[0]).arrays()
    assert_equal_arrays(first, lineage.full(lineage.base, DAYS[0]).arrays())
    other = msgspec.structs.replace(lineage.project.training, seed=1)
    changed = lineage.full(lineage.base, DAYS[0], other).arrays()
    assert not np.array_equal(changed["table.user_id.weight"], first["table.user_id.weight"])


def test_the_parent_is_not_changed(lineage: Lineage) -> None:
    before = {name: values.copy() for name, values in lineage.base.arrays().items()}
    lineage.full(lineage.base, DAYS[0])
    assert_equal_arrays(lineage.base.arrays(), before)


def test_all_parameters_train(lineage: Lineage) -> None:
    before, after = lineage.base.arrays(), lineage.full(lineage.base, DAYS[0]).arrays()
    moved = [n for n in before if n.startswith(("dense.", "table.")) and n.endswith("weight")]
    for name in moved:
        rows = min(len(before[name]), len(after[name]))
        assert not np.array_equal(before[name][:rows], after[name][:rows]), name


def test_a_saved_checkpoint_continues_as_if_it_never_stopped(
    lineage: Lineage, tmp_path: Path
) -> None:
    state = lineage.full(lineage.base, DAYS[0])
    state.save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert_equal_arrays(loaded.arrays(), state.arrays())
    assert_equal_arrays(
        lineage.full(loaded, DAYS[1]).arrays(), lineage.full(state, DAYS[1]).arrays()
    )


def test_a_day_is_trained_once_and_a_night_left_out_is_made_up(lineage: Lineage) -> None:
    state = lineage.full(lineage.base, DAYS[0])
    with pytest.raises(LineageError, match="trained already"):
        lineage.full(state, DAYS[0])
    with pytest.raises(LineageError, match="expected an imported day"):
        lineage.full(state, "2024-04-01")
    both = lineage.full(state, DAYS[2])
    entries = [lineage.data.day_entry(day) for day in DAYS[1:]]
    assert both.meta.trained.rows == sum(entry.positives for entry in entries)
    assert both.meta.window.from_day == DAYS[1]


def test_changed_shapes_are_refused(lineage: Lineage) -> None:
    model = msgspec.structs.replace(lineage.project.model, id_dim=8)
    with pytest.raises(ConfigError, match=r"model\.id_dim = 16"):
        lineage.full(lineage.base, DAYS[0], model=model)


def test_without_history_a_lineage_starts_from_nothing(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path, history=False)
    assert lineage.base.meta.trained.rows == 0
    state = lineage.base
    for day in DAYS:
        state = lineage.full(state, day)
    assert own_group_share(state) > 0.4
    assert (state.users.rows > 0).all()


def test_ids_below_the_threshold_share_the_unknown_row(lineage: Lineage) -> None:
    admission = msgspec.structs.replace(
        lineage.project.training.admission, item_min_occurrences=10_000
    )
    training = msgspec.structs.replace(lineage.project.training, admission=admission)
    state = lineage.full(lineage.train_base(training), DAYS[0], training)
    assert (state.items.rows == 0).all()
    assert len(state.model.tables["item_id"]) == 1
    assert (state.users.rows > 0).all()


def test_weak_positives_join_the_base_model(tmp_path: Path) -> None:
    project = write_project(tmp_path)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    shown = [lines[0] + ",shown"] + [f"{line},{n % NUM_ITEMS}" for n, line in enumerate(lines[1:])]
    (tmp_path / "history.csv").write_text("\n".join(shown))
    config = (tmp_path / "twotower.toml").read_text().replace('["liked"]', '["shown"]')
    (tmp_path / "twotower.toml").write_text(config)
    lineage = Lineage.__new__(Lineage)
    from twotower.config import load_project

    lineage.project = load_project(project.path)
    import_tables(lineage.project)
    lineage.data = ImportedData.open(project.data_path)
    plain = lineage.train_base()
    weak = lineage.train_base(
        msgspec.structs.replace(lineage.project.training, base_shown_weight=0.5)
    )
    assert weak.meta.trained.rows > plain.meta.trained.rows


def test_a_base_model_ends_where_it_is_told_to(lineage: Lineage) -> None:
    seen = []

    def two(state: Checkpoint, epoch: int) -> bool:
        seen.append((epoch, len(state.user_state.recent.values)))
        return epoch < 2

    training = lineage.project.training
    passes = msgspec.structs.replace(training.base, epochs=4)
    stopped = lineage.train_base(msgspec.structs.replace(training, base=passes), two)
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert all(known > 0 for _, known in seen)
    assert stopped.meta.trained.epochs == 2
    shorter = msgspec.structs.replace(passes, epochs=2)
    seen.clear()
    whole = lineage.train_base(msgspec.structs.replace(training, base=shorter), two)
    assert [epoch for epoch, _ in seen] == [1, 2]  # the last one of the schedule, too
    for name, values in whole.arrays().items():
        np.testing.assert_array_equal(stopped.arrays()[name], values, err_msg=name)


def test_a_base_model_of_sets_learns_from_the_rest_of_each_list(lineage: Lineage) -> None:
    others = msgspec.structs.replace(lineage.project.training, base_history="others")
    as_set, as_sequence = lineage.train_base(others), lineage.base
    assert as_set.meta.trained.digest == as_sequence.meta.trained.digest
    assert as_set.meta.trained.loss != as_sequence.meta.trained.loss


def test_progress_counts_every_example(lineage: Lineage) -> None:
    class Recorder:
        counts: list[int]

        def __init__(self) -> None:
            self.counts = []

        def begin(self, task: str, total: int | None = None, unit: str = "examples") -> None:
            self.total = total

        def advance(self, count: int = 1, **figures: float) -> None:
            self.counts.append(count)

        def end(self) -> None:
            pass

    recorder = Recorder()
    run_full_update(
        lineage.base,
        lineage.data,
        DAYS[0],
        model=lineage.project.model,
        training=lineage.project.training,
        progress=recorder,
    )
    assert sum(recorder.counts) == recorder.total


def test_an_order_of_a_pass_has_every_example_once() -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 5 * 3_600_000, 500))[rng.permutation(500)]
    found = {order: pass_order(times, order, 7) for order in get_args(PassOrder)}
    for order in found.values():
        np.testing.assert_array_equal(np.sort(order), np.arange(500))
    assert (np.diff(times[found["by_time"]]) >= 0).all()
    by_hour = times[found["by_hour"]]
    assert (np.diff(by_hour // 3_600_000) >= 0).all()
    assert (np.diff(by_hour) < 0).mean() > 0.4, "shuffled within the hour"
    assert (np.diff(times[found["shuffled"]] // 3_600_000) < 0).mean() > 0.3
