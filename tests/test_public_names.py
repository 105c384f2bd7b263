"""The names that users import."""

from __future__ import annotations

import pytest

import twotower


@pytest.mark.parametrize("name", twotower.__all__)
def test_every_public_name_is_what_its_module_defines(name: str) -> None:
    public = getattr(twotower, name)
    assert public.__name__ == name
    assert public.__module__.startswith("twotower.")


def test_dir_lists_them() -> None:
    assert dir(twotower) == twotower.__all__


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'retriever'"):
        _ = twotower.retriever
