"""One system in a process of its own, which takes as many steps as it is asked for.

    python training_workers.py NAME THREADS

Prints a line of JSON when it is ready, and one for every line of its input, a number of steps:
`{"examples": .., "seconds": ..}`. The other systems' processes import NumPy and their own packages
only; they learn the same examples in the same batches, and nothing of their loading is counted but
what their own trainer does.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import training_workload as workload

NUM_BATCHES: Final = 24
Stepper = Callable[[int], int]
"""Takes that many steps and returns the number of examples that went through them."""


def main() -> None:
    """Serve the steps of one system until the input ends."""
    name, threads, device = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    steps, said = WORKERS[name](threads, device)
    answers.write(json.dumps({"ready": name, **said}) + "\n")
    for line in sys.stdin:
        began = time.perf_counter()
        examples = steps(int(line))
        seconds = time.perf_counter() - began
        answers.write(json.dumps({"examples": examples, "seconds": seconds}) + "\n")


def _ours(
    threads: int, device: str, num_users: int = workload.NUM_USERS
) -> tuple[Stepper, dict[str, Any]]:
    """This package: the batches and steps of its own passes."""
    training_ours = importlib.import_module("training_ours")
    steps: Stepper = training_ours.steps_of(threads, num_users, NUM_BATCHES, device)
    return steps, {"bytes_per_user": training_ours.BYTES_PER_USER}


def _sgemm(threads: int, device: str) -> tuple[Stepper, dict[str, Any]]:
    """The bound: one square product of matrices a step; "examples" are its operations."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    size = 2048 if device == "cpu" else 8192
    left, right, out = (torch.randn(size, size, device=device) for _ in range(3))

    def steps(count: int) -> int:
        for _ in range(count):
            torch.mm(left, right, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        return 2 * size**3 * count

    steps(2)
    return steps, {}


def _torch_sparse_adagrad(threads: int, device: str) -> tuple[Stepper, dict[str, Any]]:
    """`nn.Embedding(sparse=True)`, Adagrad, cross-entropy over all logits, logQ, nothing masked."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    nn, functional = torch.nn, torch.nn.functional

    class Tower(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, size: int, cardinalities: tuple[int, ...]) -> None:
            super().__init__()
            offsets = torch.from_numpy(workload.field_offsets(cardinalities))
            self.register_buffer("offsets", offsets)
            self.ids = nn.Embedding(size, workload.ID_DIM, sparse=True)
            self.fields = nn.Embedding(sum(cardinalities), workload.FEATURE_DIM, sparse=True)
            inputs = workload.ID_DIM + len(cardinalities) * workload.FEATURE_DIM
            self.dense = nn.Sequential(
                nn.Linear(inputs, workload.HIDDEN), nn.ReLU(),
                nn.Linear(workload.HIDDEN, workload.VECTOR_DIM),
            )  # fmt: skip

        def forward(self, ids: Any, fields: Any) -> Any:
            features = self.fields(fields + self.offsets).flatten(1)
            return functional.normalize(self.dense(torch.cat([self.ids(ids), features], 1)), dim=1)

    users = Tower(workload.NUM_USERS, workload.USER_CARDINALITIES).to(device)
    items = Tower(workload.NUM_ITEMS, workload.ITEM_CARDINALITIES).to(device)
    optimizer = torch.optim.Adagrad([*users.parameters(), *items.parameters()], lr=0.02)
    steps = _plain_steps(torch, users, items, optimizer, device)
    return steps, {"version": torch.__version__}


def _torchrec(threads: int, device: str) -> tuple[Stepper, dict[str, Any]]:
    """TorchRec's fused tables with row-wise Adagrad, cross-entropy over all logits, logQ."""
    torch: Any = importlib.import_module("torch")
    torchrec: Any = importlib.import_module("torchrec")
    fused: Any = importlib.import_module("torchrec.modules.fused_embedding_modules")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    nn, functional = torch.nn, torch.nn.functional

    class Tower(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, size: int, cardinalities: tuple[int, ...]) -> None:
            super().__init__()
            sizes = [(size, workload.ID_DIM), *((n, workload.FEATURE_DIM) for n in cardinalities)]
            self.names = [f"field_{place}" for place in range(len(sizes))]
            tables = [
                torchrec.EmbeddingBagConfig(
                    num_embeddings=rows, embedding_dim=dim, name=name, feature_names=[name]
                )
                for name, (rows, dim) in zip(self.names, sizes, strict=True)
            ]
            self.tables = fused.FusedEmbeddingBagCollection(
                tables, torchrec.optim.RowWiseAdagrad, {"lr": 0.02}, device=torch.device(device)
            )
            inputs = workload.ID_DIM + len(cardinalities) * workload.FEATURE_DIM
            self.dense = nn.Sequential(
                nn.Linear(inputs, workload.HIDDEN), nn.ReLU(),
                nn.Linear(workload.HIDDEN, workload.VECTOR_DIM),
            ).to(device)  # fmt: skip

        def forward(self, ids: Any, fields: Any) -> Any:
            values = torch.cat([ids[:, None], fields], 1).T.contiguous().flatten()
            jagged = torchrec.KeyedJaggedTensor(
                self.names, values, lengths=torch.ones_like(values, dtype=torch.int32)
            )
            return functional.normalize(self.dense(self.tables(jagged).values()), dim=1)

    users = Tower(workload.NUM_USERS, workload.USER_CARDINALITIES)
    items = Tower(workload.NUM_ITEMS, workload.ITEM_CARDINALITIES)
    adam = torch.optim.Adam([*users.dense.parameters(), *items.dense.parameters()])
    steps = _plain_steps(torch, users, items, adam, device)
    return steps, {"version": torchrec.__version__}


def _plain_steps(torch: Any, users: Any, items: Any, optimizer: Any, device: str) -> Stepper:
    """Steps of two towers of PyTorch by cross-entropy over all logits; two are taken already."""
    columns = {name: torch.from_numpy(values) for name, values in _columns().items()}
    target, turn = torch.arange(workload.BATCH, device=device), _Turns()

    def steps(count: int) -> int:
        for part in turn.take(count):
            batch = {name: values[part].to(device) for name, values in columns.items()}
            user_vectors = users(batch["user"], batch["user_features"])
            item_vectors = items(batch["item"], batch["item_features"])
            logits = user_vectors @ item_vectors.T / workload.TEMPERATURE
            loss = torch.nn.functional.cross_entropy(logits - batch["log_probability"], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the last one
        return count * workload.BATCH

    steps(2)
    return steps


def _tfrs(threads: int, _device: str, *, masked: bool) -> tuple[Stepper, dict[str, Any]]:
    """TensorFlow Recommenders' retrieval task, Adagrad, compiled, fed by `tf.data`."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    tf: Any = importlib.import_module("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tfrs: Any = importlib.import_module("tensorflow_recommenders")
    layers = tf.keras.layers

    class Tower(tf.keras.Model):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, size: int, cardinalities: tuple[int, ...]) -> None:
            super().__init__()
            self.ids = layers.Embedding(size, workload.ID_DIM)
            self.fields = [layers.Embedding(n, workload.FEATURE_DIM) for n in cardinalities]
            self.first = layers.Dense(workload.HIDDEN, "relu")
            self.last = layers.Dense(workload.VECTOR_DIM)

        def call(self, ids: Any, fields: Any) -> Any:
            parts = [embed(fields[:, place]) for place, embed in enumerate(self.fields)]
            inputs = tf.concat([self.ids(ids), *parts], 1)
            return tf.math.l2_normalize(self.last(self.first(inputs)), -1)

    class Model(tfrs.Model):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.users = Tower(workload.NUM_USERS, workload.USER_CARDINALITIES)
            self.items = Tower(workload.NUM_ITEMS, workload.ITEM_CARDINALITIES)
            self.task = tfrs.tasks.Retrieval(
                temperature=workload.TEMPERATURE, remove_accidental_hits=masked
            )

        def compute_loss(self, batch: Any, training: bool = False) -> Any:
            return self.task(
                self.users(batch["user"], batch["user_features"]),
                self.items(batch["item"], batch["item_features"]),
                candidate_sampling_probability=tf.exp(batch["log_probability"]),
                candidate_ids=batch["item"],
                compute_metrics=False,
            )

    batches = tf.data.Dataset.from_tensor_slices(_columns())
    batches = batches.batch(workload.BATCH, drop_remainder=True).repeat().prefetch(4)
    model = Model()
    model.compile(tf.keras.optimizers.Adagrad(0.02))
    step, iterator = model.make_train_function(), iter(batches)

    def steps(count: int) -> int:
        for _ in range(count):
            loss = step(iterator)
        float(loss["loss"])  # waits for the last one
        return count * workload.BATCH

    steps(2)
    return steps, {"version": tf.__version__}


def _rechub(threads: int, _device: str) -> tuple[Stepper, dict[str, Any]]:
    """torch-rechub's DSSM by its own trainer, in-batch negatives, Adam; 32 wide everywhere.

    Its embedding layer refuses features of different widths.
    """
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    feature: Any = importlib.import_module("torch_rechub.basic.features").SparseFeature
    model: Any = importlib.import_module("torch_rechub.models.matching").DSSM
    trainer: Any = importlib.import_module("torch_rechub.trainers").MatchTrainer
    generator: Any = importlib.import_module("torch_rechub.utils.data").MatchDataGenerator
    columns, width = _columns(), 32
    sides = []
    inputs: dict[str, Any] = {}
    for side, size, cardinalities in (
        ("user", workload.NUM_USERS, workload.USER_CARDINALITIES),
        ("item", workload.NUM_ITEMS, workload.ITEM_CARDINALITIES),
    ):
        names = [f"{side}_{place}" for place in range(len(cardinalities))]
        sides.append(
            [feature(side, size, width)]
            + [feature(name, n, width) for name, n in zip(names, cardinalities, strict=True)]
        )
        values = columns[f"{side}_features"]
        inputs |= {side: columns[side], **{n: values[:, p] for p, n in enumerate(names)}}
    dims = {"dims": [workload.HIDDEN, workload.VECTOR_DIM], "activation": "relu"}
    made = model(*sides, user_params=dims, item_params=dims, temperature=workload.TEMPERATURE)
    runner = trainer(made, mode=0, in_batch_neg=True, n_epoch=1, device="cpu")

    def steps(count: int) -> int:
        rows = {name: values[: count * workload.BATCH] for name, values in inputs.items()}
        few = {name: values[:64] for name, values in inputs.items()}
        labels = columns["log_probability"][: count * workload.BATCH] * 0 + 1
        batches, _, _ = generator(rows, labels).generate_dataloader(
            few, few, batch_size=workload.BATCH, num_workers=0
        )
        runner.train_one_epoch(batches)
        return count * workload.BATCH

    return steps, {"version": importlib.import_module("importlib.metadata").version("torch-rechub")}


class _Turns:
    """The batches one after the other, round and round."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> list[slice]:
        numbers = [(self._next + n) % NUM_BATCHES for n in range(count)]
        self._next += count
        return [slice(n * workload.BATCH, (n + 1) * workload.BATCH) for n in numbers]


def _columns() -> dict[str, Any]:
    return workload.as_columns(workload.draw(NUM_BATCHES * workload.BATCH))


WORKERS: Final[dict[str, Callable[[int, str], tuple[Stepper, dict[str, Any]]]]] = {
    "sgemm": _sgemm,
    "ours": _ours,
    "ours_10m": lambda threads, device: _ours(threads, device, 10 * workload.NUM_USERS),
    "torch_sparse_adagrad": _torch_sparse_adagrad,
    "tfrs": lambda threads, device: _tfrs(threads, device, masked=False),
    "tfrs_masked": lambda threads, device: _tfrs(threads, device, masked=True),
    "torchrec": _torchrec,
    "rechub": _rechub,
}

if __name__ == "__main__":
    main()
