"""Quality on KuaiRand-Pure over seeds: every two-tower of the demo beside its opponents.

    python benchmarks/bench_demo.py --json bench-demo.json

Trains each variant with three seeds (`--quick`: one), scores 26 April to 8 May night by night, and
reports means over seeds with their spread, and ratios with intervals clustered by user. `--shown`
adds the models and the ALS that take shown history as weak positives. Nothing is tuned here; about
15 minutes on 2 cores, 30 with `--shown`. With `--runs FOLDER` a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

EXAMPLE: Final = Path(__file__).parents[1] / "examples" / "kuairand"
sys.path.insert(0, str(EXAMPLE))

import score  # noqa: E402

from twotower.evaluation import (  # noqa: E402
    Evaluation,
    compare_over_days,
    interval_over_days,
    mean_over_days,
)

RATIOS: Final = (
    ("two_tower", "als"),
    ("two_tower", "als_popularity"),
    ("two_tower_popularity", "als_popularity"),
    ("two_tower_shown", "als_shown"),
    ("two_tower_shown", "als_popularity_shown"),
    ("two_tower_popularity_shown", "als_popularity_shown"),
)


def main() -> None:
    """Score everything, print one table, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one seed instead of three")
    parser.add_argument("--shown", action="store_true", help="also with shown history, for all")
    parser.add_argument("--runs", type=Path, help="keep what was scored here, and go on from it")
    arguments = parser.parse_args()
    seeds = (0,) if arguments.quick else (0, 1, 2)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        kept = arguments.runs or Path(folder)
        baselines, runs = score_everything(seeds, kept, with_shown=arguments.shown)
    report = {
        "parameters": {"seeds": list(seeds), "test_days": list(score.TEST_DAYS)},
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "commit": commit(),
        "models": {
            **{name: summary([days]) for name, days in baselines.items()},
            **{
                name: summary([run[name] for run in runs])
                for name in score.VARIANTS
                if name in runs[0]
            },
        },
        "ratios": {
            f"{a} / {b}": ratios([run[a] for run in runs], baselines[b])
            for a, b in RATIOS
            if a in runs[0] and b in baselines
        },
        "left_out": "seeds 1 and 2: --quick" if arguments.quick else None,
        "seconds": round(time.perf_counter() - began, 1),
    }
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def score_everything(
    seeds: tuple[int, ...], runs: Path, *, with_shown: bool
) -> tuple[dict[str, score.Days], list[dict[str, score.Days]]]:
    """Run one process a model and seed, two at a time; return the baselines, and a seed's models.

    A file that is in `runs` already is not made again.
    """
    baselines = ["baselines", "baselines_shown"] if with_shown else ["baselines"]
    variants = [name for name in score.VARIANTS if with_shown or not name.endswith("_shown")]
    jobs = [(name, 0) for name in baselines]
    jobs += [(name, seed) for seed in seeds for name in variants]
    runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        scored = dict(zip(jobs, pool.map(partial(score_one, runs=runs), jobs), strict=True))
    fitted = {name: days for job in baselines for name, days in scored[job, 0].items()}
    return fitted, [{name: scored[name, seed][name] for name in variants} for seed in seeds]


def score_one(job: tuple[str, int], runs: Path) -> dict[str, score.Days]:
    """Score one model and seed in a process of its own, or read what an earlier call scored."""
    name, seed = job
    out = runs / f"{name}-{seed}.npz"
    if not out.exists():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "scored.npz"
            command = [sys.executable, str(EXAMPLE / "score.py"), name, "--seed", str(seed)]
            command += ["--out", str(made), "--data-dir", str(Path(folder) / "data")]
            subprocess.run(command, check=True)
            shutil.move(made, out)
    return score.load(out)[0]


def tested(days: score.Days) -> list[Evaluation]:
    """Return the evaluations of the test days."""
    return [days[day] for day in days if day >= score.TEST_DAYS[0]]


def summary(runs: list[score.Days]) -> dict[str, Any]:
    """Return each metric's mean over seeds, its spread, and the first seed's interval."""
    means = [mean_over_days(tested(days)) for days in runs]
    interval = interval_over_days(tested(runs[0]), "recall_at_50", seed=0)
    return {
        **{metric: float(np.mean([mean[metric] for mean in means])) for metric in score.METRICS},
        "recall_at_50_over_seeds": [mean["recall_at_50"] for mean in means],
        "recall_at_50_interval": [interval.low, interval.high],
    }


def ratios(ours: list[score.Days], theirs: score.Days) -> dict[str, Any]:
    """Return the ratio of Recall@50 a seed, and the first seed's interval by user."""
    compared = [
        compare_over_days(tested(days), tested(theirs), "recall_at_50", seed=0) for days in ours
    ]
    return {
        "mean": float(np.mean([ratio.estimate for ratio in compared])),
        "over_seeds": [ratio.estimate for ratio in compared],
        "interval": [compared[0].low, compared[0].high],
    }


def show(report: Mapping[str, Any]) -> None:
    """Print the tables."""
    console = Console(highlight=False)
    table = Table(title="KuaiRand-Pure, mean of 2 to 8 May", caption=f"commit {report['commit']}")
    for heading in ("model", "Recall@20", "Recall@50", "seeds", "Recall@200", "NDCG@50"):
        table.add_column(heading)
    for name, figures in report["models"].items():
        values = figures["recall_at_50_over_seeds"]
        spread = f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else "-"
        table.add_row(
            name,
            f"{figures['recall_at_20']:.4f}",
            f"{figures['recall_at_50']:.4f}",
            spread,
            f"{figures['recall_at_200']:.4f}",
            f"{figures['ndcg_at_50']:.4f}",
        )
    console.print(table)
    for name, ratio in report["ratios"].items():
        low, high = ratio["interval"]
        console.print(f"{name}: {ratio['mean']:.3f} ({low:.3f} to {high:.3f}, by user)")


def commit() -> str:
    """Return the commit that was measured."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
