"""The feature specification of one side: from readable values to the numbers that towers take.

One embedding table a side holds all categorical, quantile and multi values. A *row* is a place in
that table, append-only across nights: a value that has a row keeps it. The first rows, one a
coded field, are the rows of missing values; a value that was never admitted uses them as well.

Legend: `N` entities, `F` categorical fields (quantile fields included), `M` numeric fields
(timestamps included), `G` multi-valued fields, `L` slots a multi-valued field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.feature_fields import (
    Field,
    FloatArray,
    RowArray,
    fit_numbers,
    new_values,
    role_of,
    value_counts,
)
from twotower.data.feature_values import (
    is_missing,
    number,
    number_column,
    split_values,
    text,
    text_codes,
    text_lists,
)
from twotower.data.schema import EncodedFeatures
from twotower.data.settings import FeatureSettings
from twotower.errors import CorruptArtifact

if TYPE_CHECKING:
    import polars as pl

__all__ = ["FEATURES_FORMAT_VERSION", "EncodedFeatures", "FeatureSpec"]

FEATURES_FORMAT_VERSION: Final = 1


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON form."""

    format_version: int
    num_rows: int
    fields: tuple[Field, ...]


class FeatureSpec:
    """Fields, their values' rows, and the numbers fixed when they were fitted. Immutable."""

    def __init__(self, fields: tuple[Field, ...], num_rows: int) -> None:
        self.fields = fields
        self.num_rows = num_rows
        """Rows of the side's feature table."""
        self.coded = tuple(field for field in fields if field.role == "categorical")
        """The fields of the columns of `categorical`, in order."""
        self.measured = tuple(field for field in fields if field.role == "numeric")
        """The fields of the column pairs of `numeric`, in order."""
        self.listed = tuple(field for field in fields if field.role == "multi")
        """The fields of the middle axis of `multi`, in order."""
        self.field_names = frozenset(field.name for field in fields)
        self._rows = {f.name: dict(zip(f.values, f.rows, strict=True)) for f in fields}
        self._values = {row: v for f in fields for v, row in zip(f.values, f.rows, strict=True)}

    @property
    def num_categorical(self) -> int:
        """`F`."""
        return len(self.coded)

    @property
    def num_numeric(self) -> int:
        """`M`; the array has twice as many columns."""
        return len(self.measured)

    @property
    def num_multi(self) -> int:
        """`G`."""
        return len(self.listed)

    @property
    def multi_width(self) -> int:
        """`L`: the largest `max_values` of the multi-valued fields."""
        return max((field.settings.max_values for field in self.listed), default=0)

    @classmethod
    def fit(
        cls,
        settings: Mapping[str, FeatureSettings],
        frame: pl.DataFrame | None,
        as_of_ms: int | None = None,
    ) -> FeatureSpec:
        """Fix the fields, the standardisation and the bucket limits, and admit the first values.

        Args:
            settings: the features of the side, by name.
            frame: a table of the import, with a column a feature; None admits nothing.
            as_of_ms: when ages are measured for the standardisation of timestamps; the latest
                time in the column where left out.
        """
        fields: list[Field] = []
        num_missing = 0
        for name, feature in settings.items():
            role = role_of(feature)
            row = -1 if role == "numeric" else num_missing
            num_missing += role != "numeric"
            series = None if frame is None else frame[name]
            numbers = fit_numbers(feature, series, as_of_ms)
            fields.append(Field(name=name, settings=feature, role=role, missing_row=row, **numbers))
        spec = cls(*_with_buckets(fields, num_missing))
        return spec if frame is None else spec.extend(frame)

    def extend(self, frame: pl.DataFrame) -> FeatureSpec:
        """Return a specification that also knows the frequent enough new values of `frame`.

        Rows are appended; every older value keeps its row, and no number changes.
        """
        fields, num_rows = [], self.num_rows
        for field in self.fields:
            if field.role == "numeric" or field.limits is not None:
                fields.append(field)
                continue
            counts = value_counts(field.settings, frame[field.name])
            added = new_values(counts, self._rows[field.name], field.settings.min_count)
            fields.append(field.with_values(added, num_rows))
            num_rows += len(added)
        return FeatureSpec(tuple(fields), num_rows)

    def encode(self, frame: pl.DataFrame, as_of_ms: int) -> EncodedFeatures:
        """Return the features of every row of `frame`, which has a column a feature.

        Args:
            frame: a table of the import, or one of the same columns.
            as_of_ms: when ages of timestamps are measured; later timestamps have age 0.
        """
        encoded = self._empty(len(frame))
        for i, field in enumerate(self.coded):
            encoded.categorical[:, i] = self._code_column(field, frame[field.name])
        for i, field in enumerate(self.measured):
            _put_numbers(
                encoded.numeric, i, field.scaled(field.measure_column(frame[field.name]), as_of_ms)
            )
        for i, field in enumerate(self.listed):
            self._put_lists(encoded.multi[:, i], field, frame[field.name])
        return encoded

    def missing(self, n: int) -> EncodedFeatures:
        """Return the features of `n` entities of which nothing is known."""
        encoded = self._empty(n)
        for i, field in enumerate(self.coded):
            encoded.categorical[:, i] = field.missing_row
        for i, field in enumerate(self.listed):
            encoded.multi[:, i, 0] = field.missing_row
        return encoded

    def encode_one(
        self, values: Mapping[str, object], as_of_ms: int
    ) -> tuple[EncodedFeatures, list[str], list[str]]:
        """Return one entity's features, the names of missing and those of unseen features.

        Needs no polars and equals `encode` of the same values. Names in `values` that are no
        feature are left to the caller. A multi value may be a list or one text with separators.
        """
        encoded, unseen = self.missing(1), set()
        for i, field in enumerate(self.coded):
            encoded.categorical[0, i] = self._row(field, values.get(field.name))
            unseen |= {field.name} if encoded.categorical[0, i] == field.missing_row else set()
        for i, field in enumerate(self.measured):
            measured = np.array([field.measure(values.get(field.name))])
            _put_numbers(encoded.numeric, i, field.scaled(measured, as_of_ms))
        for i, field in enumerate(self.listed):
            rows = self._listed_rows(field, values.get(field.name))
            kept = list(dict.fromkeys(rows))[: field.settings.max_values]
            encoded.multi[0, i, : len(kept)] = kept
            unseen |= {field.name} if field.missing_row in rows else set()
        missing = [f.name for f in self.fields if f.is_missing(values.get(f.name))]
        return encoded, missing, [f.name for f in self.fields if f.name in unseen - set(missing)]

    def field_of(self, name: str) -> Field | None:
        """Return a field by its name."""
        return next((field for field in self.fields if field.name == name), None)

    def value_row(self, field: Field, value: object) -> int | None:
        """Return the row of one value of a coded or listed field, None where it was never admitted.

        A value that says nothing has the field's missing row.
        """
        if is_missing(value):
            return field.missing_row
        return self._rows[field.name].get(text(value) or "")

    def lacking(self, encoded: EncodedFeatures, index: int) -> list[str]:
        """Return the fields of one entity that hold nothing a tower could use, in their order.

        Asked at every request: plain lists are several times quicker here than arrays.
        """
        categorical, numeric, multi = encoded
        rows, has = categorical[index].tolist(), numeric[index, 1::2].tolist()
        firsts = multi[index, :, 0].tolist() if self.listed else []  # else of width zero
        found = [
            field.name
            for field, row in zip(self.coded, rows, strict=True)
            if row == field.missing_row
        ]
        found += [
            field.name for field, is_there in zip(self.measured, has, strict=True) if not is_there
        ]
        found += [
            field.name
            for field, row in zip(self.listed, firsts, strict=True)
            if row == field.missing_row
        ]
        if len(found) < 2:
            return found
        return [field.name for field in self.fields if field.name in found]

    def missing_rows(self) -> npt.NDArray[np.int64]:
        """Return for every row of the feature table the missing row of its field, `[num_rows]`."""
        rows = np.arange(self.num_rows, dtype=np.int64)
        for field in self.fields:
            rows[list(field.rows)] = field.missing_row
        return rows

    def decode(self, encoded: EncodedFeatures, index: int) -> dict[str, object]:
        """Return the readable values of the coded fields of one entity.

        None stands for missing or unseen, a bucket is its limits, a multi value is a list.
        """
        readable: dict[str, object] = {}
        for i, field in enumerate(self.coded):
            readable[field.name] = self._values.get(int(encoded.categorical[index, i]))
        for i, field in enumerate(self.listed):
            rows = encoded.multi[index, i].tolist()
            readable[field.name] = [self._values[row] for row in rows if row in self._values]
        return readable

    def to_json(self) -> bytes:
        """Return the specification as JSON, the same bytes for the same content."""
        return msgspec.json.encode(
            _Document(
                format_version=FEATURES_FORMAT_VERSION, num_rows=self.num_rows, fields=self.fields
            )
        )

    @classmethod
    def from_json(cls, data: bytes) -> FeatureSpec:
        """Rebuild a specification.

        Raises:
            CorruptArtifact: it is no specification, or of a newer format.
        """
        try:
            version = msgspec.json.decode(data, type=_Version).format_version
            if version > FEATURES_FORMAT_VERSION:
                raise CorruptArtifact(
                    f"the feature specification has format version {version}, this twotower "
                    f"reads up to {FEATURES_FORMAT_VERSION}; upgrade twotower to read it"
                )
            document = msgspec.json.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            raise CorruptArtifact(f"not a feature specification: {error}") from error
        return cls(document.fields, document.num_rows)

    def _empty(self, n: int) -> EncodedFeatures:
        return EncodedFeatures(
            np.zeros((n, self.num_categorical), np.int32),
            np.zeros((n, 2 * self.num_numeric), np.float32),
            np.full((n, self.num_multi, self.multi_width), -1, np.int32),
        )

    def _code_column(self, field: Field, series: pl.Series) -> RowArray:
        if field.limits is not None:
            return field.bucket_rows(number_column(series))
        uniques, codes = text_codes(series)
        rows = [self._rows[field.name].get(value, field.missing_row) for value in uniques]
        return np.array([*rows, field.missing_row], np.int32)[codes]

    def _put_lists(self, slots: RowArray, field: Field, series: pl.Series) -> None:
        """Write `[N, L]`: distinct rows of each entity's values in their order, then padding."""
        uniques, codes, owners = text_lists(series, field.settings.separator)
        known = [self._rows[field.name].get(value, field.missing_row) for value in uniques]
        rows = np.array([*known, field.missing_row], np.int64)[codes]
        _, first = np.unique(owners * self.num_rows + rows, return_index=True)
        kept = np.sort(first)
        owners, rows = owners[kept], rows[kept]
        place = np.arange(len(owners)) - np.searchsorted(owners, owners)
        fits = place < field.settings.max_values
        slots[owners[fits], place[fits]] = rows[fits]
        slots[slots[:, 0] < 0, 0] = field.missing_row

    def _row(self, field: Field, value: object) -> int:
        if field.limits is not None:
            return int(field.bucket_rows(np.array([number(value)]))[0])
        return self._rows[field.name].get(text(value) or "", field.missing_row)

    def _listed_rows(self, field: Field, value: object) -> list[int]:
        parts = split_values(value, field.settings.separator)
        return [self._rows[field.name].get(part, field.missing_row) for part in parts]


class _Version(msgspec.Struct):
    format_version: int


def _with_buckets(fields: list[Field], num_rows: int) -> tuple[tuple[Field, ...], int]:
    """Give every bucket of the quantile fields its row."""
    finished = []
    for field in fields:
        names = field.bucket_names()
        finished.append(field.with_values(names, num_rows))
        num_rows += len(names)
    return tuple(finished), num_rows


def _put_numbers(numeric: npt.NDArray[np.float32], place: int, scaled: FloatArray) -> None:
    numeric[:, 2 * place] = np.nan_to_num(scaled)
    numeric[:, 2 * place + 1] = np.isfinite(scaled)
