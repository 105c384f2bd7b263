from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from twotower.data.features import EncodedFeatures, FeatureSpec
from twotower.data.settings import FeatureSettings
from twotower.errors import CorruptArtifact

DAY_MS = 86_400_000
AS_OF = 1_700_000_000_000
SETTINGS = {
    "country": FeatureSettings(kind="categorical"),
    "maker": FeatureSettings(kind="categorical", min_count=2),
    "age": FeatureSettings(kind="numeric"),
    "fans": FeatureSettings(kind="numeric", transform="log"),
    "price": FeatureSettings(kind="numeric", transform="quantile", buckets=3),
    "tags": FeatureSettings(kind="multi", separator="|", max_values=3),
    "made": FeatureSettings(kind="timestamp", unit="ms"),
}
FRAME = pl.DataFrame(
    {
        "country": ["FR", "DE", None, "FR"],
        "maker": ["a", "a", "b", None],
        "age": [10.0, 20.0, 30.0, None],
        "fans": [0.0, 9.0, 99.0, None],
        "price": [1.0, 2.0, 3.0, None],
        "tags": ["x|y", "y", None, "z|y|x|w"],
        "made": [AS_OF - DAY_MS, AS_OF - 10 * DAY_MS, None, AS_OF],
    }
)
ROWS = {"country": 0, "maker": 1, "price": 2, "tags": 3}  # rows of the missing values


@pytest.fixture
def spec() -> FeatureSpec:
    return FeatureSpec.fit(SETTINGS, FRAME, as_of_ms=AS_OF)


def same(one: EncodedFeatures, many: EncodedFeatures, index: int) -> bool:
    return all(np.array_equal(a[0], b[index]) for a, b in zip(one, many, strict=True))


def test_shapes_and_types(spec: FeatureSpec) -> None:
    encoded = spec.encode(FRAME, AS_OF)
    assert encoded.categorical.shape == (4, 3)
    assert encoded.numeric.shape == (4, 6)
    assert encoded.multi.shape == (4, 1, 3)
    assert [array.dtype for array in encoded] == [np.int32, np.float32, np.int32]
    counts = (spec.num_categorical, spec.num_numeric, spec.num_multi, spec.multi_width)
    assert counts == (3, 3, 1, 3)
    assert max(encoded.categorical.max(), encoded.multi.max()) < spec.num_rows


def test_equal_values_share_a_row_and_different_ones_do_not(spec: FeatureSpec) -> None:
    country = spec.encode(FRAME, AS_OF).categorical[:, 0]
    assert country[0] == country[3] != country[1]
    assert country[2] == ROWS["country"]


def test_a_value_rarer_than_min_count_uses_the_missing_row(spec: FeatureSpec) -> None:
    maker = spec.encode(FRAME, AS_OF).categorical[:, 1]
    assert maker[0] == maker[1] != ROWS["maker"]
    assert maker[2] == maker[3] == ROWS["maker"]


def test_a_planted_unseen_value_uses_its_own_fields_missing_row(spec: FeatureSpec) -> None:
    planted = FRAME.with_columns(country=pl.lit("FR2"), tags=pl.lit("never"), price=pl.lit(1e9))
    encoded = spec.encode(planted, AS_OF)
    assert (encoded.categorical[:, 0] == ROWS["country"]).all()
    assert (encoded.multi[:, 0, 0] == ROWS["tags"]).all()
    assert (encoded.multi[:, 0, 1:] == -1).all()
    largest = spec.encode(FRAME, AS_OF).categorical[2, 2]
    assert (encoded.categorical[:, 2] == largest).all()  # a number always has a bucket


def test_numbers_are_standardised_with_what_was_fitted(spec: FeatureSpec) -> None:
    numeric = spec.encode(FRAME, AS_OF).numeric
    np.testing.assert_allclose(numeric[:3, 0], [-(1.5**0.5), 0, 1.5**0.5], atol=1e-6)
    np.testing.assert_array_equal(numeric[:, 1], [1, 1, 1, 0])
    assert numeric[3, 0] == 0
    shifted = spec.encode(FRAME.with_columns(pl.col("age") + 1000), AS_OF).numeric
    assert shifted[0, 0] > 100  # not standardised again


def test_log_compresses_a_heavy_tail(spec: FeatureSpec) -> None:
    numeric = spec.encode(FRAME, AS_OF).numeric[:3, 2]
    np.testing.assert_allclose(numeric[2] - numeric[1], numeric[1] - numeric[0], rtol=1e-5)
    negative = spec.encode(FRAME.with_columns(fans=pl.lit(-9.0)), AS_OF).numeric[0, 2]
    assert np.isclose(numeric[0] - negative, numeric[1] - numeric[0], rtol=1e-5)


def test_quantiles_put_the_same_number_into_every_bucket() -> None:
    settings = {"x": FeatureSettings(kind="numeric", transform="quantile", buckets=5)}
    frame = pl.DataFrame({"x": np.random.default_rng(0).exponential(size=1000)})
    rows = FeatureSpec.fit(settings, frame).encode(frame, 0).categorical[:, 0]
    _, counts = np.unique(rows, return_counts=True)
    assert len(counts) == 5
    assert counts.min() >= 199
    order = frame["x"].arg_sort().to_numpy()
    assert (np.diff(rows[order]) >= 0).all()


def test_no_bucket_is_empty_where_values_repeat() -> None:
    settings = {"x": FeatureSettings(kind="numeric", transform="quantile", buckets=8)}
    frame = pl.DataFrame({"x": [0.0] * 90 + [1.0] * 5 + [2.0] * 5})
    spec = FeatureSpec.fit(settings, frame)
    used = np.unique(spec.encode(frame, 0).categorical)
    assert len(used) == spec.num_rows - 1  # all but the missing row


def test_age_grows_with_the_moment_and_is_never_negative(spec: FeatureSpec) -> None:
    now = spec.encode(FRAME, AS_OF).numeric[:, 4]
    later = spec.encode(FRAME, AS_OF + 5 * DAY_MS).numeric[:, 4]
    known = [0, 1, 3]
    assert (later[known] > now[known]).all()
    field = spec.measured[2]
    unscaled = now[known] * field.std + field.mean
    np.testing.assert_allclose(unscaled, np.log1p([1, 10, 0]), atol=1e-6)
    earlier = spec.encode(FRAME, AS_OF - 100 * DAY_MS).numeric[:, 4]
    np.testing.assert_allclose(earlier[known] * field.std + field.mean, 0, atol=1e-6)
    assert now[2] == later[2] == 0  # missing


def test_multi_values_keep_their_order_without_repeats_up_to_max_values() -> None:
    settings = {"tags": FeatureSettings(kind="multi", separator="|", max_values=3)}
    frame = pl.DataFrame({"tags": ["c| b|c||a|d", "", None, "d"]})
    spec = FeatureSpec.fit(settings, frame)
    encoded = spec.encode(frame, 0)
    assert spec.decode(encoded, 0) == {"tags": ["c", "b", "a"]}
    assert (encoded.multi[:, 0, 0] >= 0).all()
    np.testing.assert_array_equal(encoded.multi[1], [[0, -1, -1]])
    np.testing.assert_array_equal(encoded.multi[1], encoded.multi[2])


def test_lists_and_separated_text_are_the_same() -> None:
    settings = {"tags": FeatureSettings(kind="multi", separator="|")}
    text = pl.DataFrame({"tags": ["a|b", None, "c"]})
    lists = pl.DataFrame({"tags": [["a", "b"], None, ["c"]]})
    spec = FeatureSpec.fit(settings, text)
    assert spec.to_json() == FeatureSpec.fit(settings, lists).to_json()
    np.testing.assert_array_equal(spec.encode(text, 0).multi, spec.encode(lists, 0).multi)


def test_whole_numbers_are_one_category_however_written() -> None:
    settings = {"x": FeatureSettings(kind="categorical")}
    spec = FeatureSpec.fit(settings, pl.DataFrame({"x": ["1", "2"]}))
    one = spec.encode_one({"x": "1"}, 0)[0].categorical
    for value in (1, 1.0, "1.0", " 1 "):
        np.testing.assert_array_equal(spec.encode_one({"x": value}, 0)[0].categorical, one)
    column = spec.encode(pl.DataFrame({"x": [1.0, None]}), 0).categorical
    np.testing.assert_array_equal(column, [one[0], [0]])


def test_extend_appends_rows_and_moves_nothing(spec: FeatureSpec) -> None:
    more = pl.DataFrame(
        {
            "country": ["AT", "FR", "CH", "AT"],
            "maker": ["b", "b", "c", "a"],
            "age": [1000.0] * 4,
            "fans": [1000.0] * 4,
            "price": [1000.0] * 4,
            "tags": ["v", "x|w", None, None],
            "made": [AS_OF] * 4,
        }
    )
    extended = spec.extend(more)
    assert extended.num_rows == spec.num_rows + 4  # AT, CH, b, v
    before, after = spec.encode(FRAME, AS_OF), extended.encode(FRAME, AS_OF)
    np.testing.assert_array_equal(before.categorical[:, [0, 2]], after.categorical[:, [0, 2]])
    np.testing.assert_array_equal(before.numeric, after.numeric)
    np.testing.assert_array_equal(before.multi, after.multi)
    new_rows = set(extended.encode(more, AS_OF).categorical[:, 0]) - set(before.categorical[:, 0])
    assert min(new_rows) >= spec.num_rows
    assert extended.extend(more).to_json() == extended.to_json()


def test_missing_is_what_an_empty_row_gives(spec: FeatureSpec) -> None:
    nothing = FRAME.clear(n=2)
    encoded, missing = spec.encode(nothing, AS_OF), spec.missing(2)
    for one, other in zip(encoded, missing, strict=True):
        np.testing.assert_array_equal(one, other)
    assert missing.categorical[0].tolist() == [ROWS["country"], ROWS["maker"], ROWS["price"]]


def test_encode_one_equals_encode_and_names_what_it_did_not_use(spec: FeatureSpec) -> None:
    encoded = spec.encode(FRAME, AS_OF)
    for index, row in enumerate(FRAME.iter_rows(named=True)):
        assert same(spec.encode_one(row, AS_OF)[0], encoded, index)
    values = {"country": "??", "age": "12", "fans": "many", "tags": ["x", "new"], "price": 2}
    one, missing, unseen = spec.encode_one(values, AS_OF)
    assert missing == ["maker", "fans", "made"]
    assert unseen == ["country", "tags"]
    assert one.multi[0, 0, 1] == ROWS["tags"]
    assert one.numeric[0, 0] == spec.encode_one({"age": 12}, AS_OF)[0].numeric[0, 0]


VALUES = st.fixed_dictionaries(
    {
        "country": st.none() | st.sampled_from(["FR", "DE", "", " ", "??", "1.0", "été"]),
        "maker": st.none() | st.text(max_size=3),
        "age": st.none() | st.floats(),
        "fans": st.none() | st.floats(-1e12, 1e12),
        "price": st.none() | st.floats(),
        "tags": st.none() | st.text(alphabet="xyzw| 1.0", max_size=12),
        "made": st.none() | st.integers(0, 2 * AS_OF),
    }
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5))
def test_encode_one_equals_encode_for_any_values(rows: list[Mapping[str, object]]) -> None:
    spec = FeatureSpec.fit(SETTINGS, FRAME, as_of_ms=AS_OF)
    encoded = spec.encode(pl.DataFrame(rows, schema=FRAME.schema), AS_OF)
    for index, row in enumerate(rows):
        assert same(spec.encode_one(row, AS_OF)[0], encoded, index)


@pytest.mark.parametrize(
    ("unit", "value", "frame_value"),
    [
        ("s", 1_600_000_000, pl.Series([1_600_000_000])),
        ("iso", "2020-09-13T12:26:40Z", pl.Series(["2020-09-13T12:26:40Z"])),
        ("iso", "2020-09-13T14:26:40+02:00", pl.Series([datetime(2020, 9, 13, 12, 26, 40)])),
        (
            "iso",
            datetime(2020, 9, 13, 12, 26, 40, tzinfo=timezone.utc),
            pl.Series(["2020-09-13T12:26:40"]),
        ),
    ],
)
def test_times_of_all_forms_are_the_same_moment(
    unit: str, value: object, frame_value: pl.Series
) -> None:
    settings = {"t": FeatureSettings(kind="timestamp", unit=unit)}  # type: ignore[arg-type]
    frame = pl.DataFrame({"t": frame_value})
    spec = FeatureSpec.fit(settings, frame, as_of_ms=AS_OF)
    one, missing, _ = spec.encode_one({"t": value}, AS_OF)
    assert missing == []
    assert same(one, spec.encode(frame, AS_OF), 0)
    age_days = (AS_OF / 1000 - 1_600_000_000) / 86_400
    assert np.isclose(spec.measured[0].mean, np.log1p(age_days))


@pytest.mark.parametrize("kinds", [("country",), ("age",), ("tags",), (), tuple(SETTINGS)])
def test_what_is_lacking_is_named_whatever_kinds_of_features_there_are(
    kinds: tuple[str, ...],
) -> None:
    spec = FeatureSpec.fit({name: SETTINGS[name] for name in kinds}, FRAME)
    encoded = spec.encode(FRAME, AS_OF)
    for index, values in enumerate(FRAME.rows(named=True)):
        unusable = [n for n in kinds if values[n] is None or (n == "maker" and values[n] == "b")]
        assert spec.lacking(encoded, index) == unusable


def test_decode_gives_readable_values(spec: FeatureSpec) -> None:
    encoded = spec.encode(FRAME, AS_OF)
    assert spec.decode(encoded, 0) == {
        "country": "FR",
        "maker": "a",
        "price": "below 2",
        "tags": ["x", "y"],
    }
    assert spec.decode(encoded, 2)["price"] == "3 and above"
    assert spec.decode(spec.missing(1), 0) == {
        "country": None,
        "maker": None,
        "price": None,
        "tags": [],
    }


def test_json_round_trip_and_versions(spec: FeatureSpec) -> None:
    data = spec.to_json()
    again = FeatureSpec.from_json(data)
    assert again.to_json() == data
    for one, other in zip(spec.encode(FRAME, AS_OF), again.encode(FRAME, AS_OF), strict=True):
        np.testing.assert_array_equal(one, other)
    newer = data.replace(b'"format_version":1', b'"format_version":2')
    with pytest.raises(CorruptArtifact, match="has format version 2, this twotower reads up to 1"):
        FeatureSpec.from_json(newer)
    with pytest.raises(CorruptArtifact, match="not a feature specification"):
        FeatureSpec.from_json(data[:-5])


def test_a_side_without_features_has_arrays_of_width_zero() -> None:
    spec = FeatureSpec.fit({}, None)
    shapes = [array.shape for array in spec.missing(3)]
    assert shapes == [(3, 0), (3, 0), (3, 0, 0)]
    assert [a.shape for a in spec.encode(pl.DataFrame({"user_id": [1, 2]}), 0)] == [
        (2, 0),
        (2, 0),
        (2, 0, 0),
    ]
    assert spec.encode_one({}, 0)[1:] == ([], [])


def test_features_without_a_table_are_all_missing() -> None:
    spec = FeatureSpec.fit(SETTINGS, None)
    _, missing, unseen = spec.encode_one({"country": "FR", "price": 3}, AS_OF)
    assert unseen == ["country"]
    assert "age" in missing


def test_an_outlier_stays_finite_and_an_absurd_number_is_missing(spec: FeatureSpec) -> None:
    far, missing, _ = spec.encode_one({"age": 1e29}, AS_OF)
    assert "age" not in missing
    assert far.numeric[0, :2].tolist() == [1e4, 1]
    absurd, missing, _ = spec.encode_one({"age": 1e300}, AS_OF)
    assert "age" in missing
    assert absurd.numeric[0, :2].tolist() == [0, 0]
