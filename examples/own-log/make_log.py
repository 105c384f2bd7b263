"""Makes the log of this example: a recipe site whose readers each like two kinds of food.

Run `python make_log.py` in this folder; the same seed gives the same rows. The log holds what
real ones hold too: repeated lines, a few unusable rows, an action instead of a 0/1 outcome, and
the night in which the clocks are put forward.
"""

from __future__ import annotations

import csv
import gzip
import io
import random
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

SEED = 7
ZONE = ZoneInfo("Europe/Paris")
FIRST_DAY = datetime(2025, 3, 27, tzinfo=ZONE)
NUM_DAYS, NUM_READERS, NUM_RECIPES, NUM_EVENTS = 6, 120, 80, 2000
KINDS = ("vegan", "soup", "pasta", "dessert", "grill", "asian", "breakfast", "salad")
COUNTRIES = ("FR", "FR", "FR", "BE", "CH", "DE")
ADJECTIVES = ("Quick", "Creamy", "Spicy", "Golden", "Rustic", "Light", "Smoky", "Sweet")
DISHES = ("tomato", "lentil", "lemon", "mushroom", "chicken", "almond", "ginger", "potato")

Row = Sequence[object]


def recipes(random_: random.Random) -> list[Row]:
    """Return `recipe, title, kinds, minutes, published`, all texts as a site would export them."""
    rows: list[Row] = []
    for number in range(NUM_RECIPES):
        kinds = [KINDS[number % len(KINDS)], *random_.sample(KINDS, random_.randint(0, 1))]
        title = f"{random_.choice(ADJECTIVES)} {random_.choice(DISHES)} {kinds[0]}"
        published = FIRST_DAY - timedelta(days=random_.randint(1, 400))
        minutes = "" if random_.random() < 0.05 else random_.choice((10, 15, 25, 40, 60, 90))
        kind_text = "|".join(dict.fromkeys(kinds))
        rows.append((f"r-{number:03d}", title, kind_text, minutes, f"{published:%Y-%m-%d}"))
    return rows


def readers(random_: random.Random) -> list[Row]:
    """Return `reader, country, age`; some ages are not known."""
    ages: list[object] = [random_.randint(18, 75) for _ in range(NUM_READERS)]
    for unknown in random_.sample(range(NUM_READERS), 15):
        ages[unknown] = ""
    return [(f"u{n:04d}", random_.choice(COUNTRIES), age) for n, age in enumerate(ages)]


def events(random_: random.Random, recipe_rows: list[Row], reader_rows: list[Row]) -> list[Row]:
    """Return `request, shown_at, reader, recipe, action` in the order of time."""
    taste = {row[0]: set(random_.sample(KINDS, 2)) for row in reader_rows}
    popularity = [1 / (1 + place) ** 0.5 for place in range(NUM_RECIPES)]
    span_s = int((FIRST_DAY + timedelta(days=NUM_DAYS)).timestamp() - FIRST_DAY.timestamp())
    seconds = sorted(random_.randrange(span_s) for _ in range(NUM_EVENTS))
    rows: list[Row] = []
    for number, second in enumerate(seconds):
        reader = random_.choice(reader_rows)[0]
        recipe = random_.choices(recipe_rows, popularity)[0]
        liked = taste[reader] & set(str(recipe[2]).split("|"))
        opened = random_.random() < (0.7 if liked else 0.12)
        action = random_.choice(("open", "save")) if opened else "skip"
        shown_at = datetime.fromtimestamp(FIRST_DAY.timestamp() + second, ZONE)
        rows.append((f"q{number:05d}", shown_at.isoformat(), reader, recipe[0], action))
    return rows


def spoiled(random_: random.Random, rows: list[Row]) -> list[Row]:
    """Return the rows with 12 of them repeated and 3 without a reader."""
    repeated = random_.sample(rows, 12)
    nameless = [(f"x{n}", row[1], "", row[3], row[4]) for n, row in enumerate(rows[100:103])]
    return sorted([*rows, *repeated, *nameless], key=lambda row: str(row[1]))


def write_csv(path: Path, header: str, rows: Iterable[Row]) -> None:
    """Write a CSV file, compressed if its name says so; no time stamp inside."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header.split(","))
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def make_log(folder: Path) -> None:
    """Write the four files of the example."""
    random_ = random.Random(SEED)
    recipe_rows, reader_rows = recipes(random_), readers(random_)
    rows = spoiled(random_, events(random_, recipe_rows, reader_rows))
    half = len(rows) // 2
    header = "request,shown_at,reader,recipe,action"
    write_csv(folder / "events-1.csv.gz", header, rows[:half])
    write_csv(folder / "events-2.csv.gz", header, rows[half:])
    write_csv(folder / "recipes.csv", "recipe,title,kinds,minutes,published", recipe_rows)
    write_csv(folder / "readers.csv", "reader,country,age", reader_rows)


if __name__ == "__main__":
    make_log(Path(__file__).parent / "data")
