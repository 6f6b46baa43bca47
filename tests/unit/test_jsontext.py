"""Canonical JSON: one text of each value, and what every database can hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsync.errors import RejectedSegment
from nsync.namespace.jsontext import JSON_BYTES_MAX, JSON_DEPTH_MAX, canonical_json, check_json, check_json_object
from tests.conformance.vocabulary import REFUSED_JSON
from tests.fuzz.oracle import is_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_every_value_has_one_text(value: Any) -> None:
    try:
        text = canonical_json(value)
    except ValueError:
        assert "\\u0000" in json.dumps(value)
        return
    check_json(text)
    assert json.loads(text) == value and canonical_json(json.loads(text)) == text and is_json(text)


@given(VALUES, st.booleans(), st.booleans(), st.none() | st.integers(0, 1))
def test_no_other_text_is_taken(value: Any, ascii_only: bool, unsorted: bool, indent: Any) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, sort_keys=not unsorted, indent=indent, separators=(",", ":"))
    try:
        check_json(text)
    except RejectedSegment:
        assert not is_json(text)
    else:
        assert is_json(text) and text == canonical_json(value)


@pytest.mark.parametrize(("text", "start"), REFUSED_JSON.values(), ids=REFUSED_JSON.keys())
def test_what_is_not_canonical_is_refused(text: str, start: str) -> None:
    with pytest.raises(RejectedSegment) as caught:
        check_json(text)
    assert str(caught.value).startswith(start) and len(str(caught.value)) < 300 and not is_json(text)


def test_limits_are_what_they_say() -> None:
    check_json("[" * JSON_DEPTH_MAX + "]" * JSON_DEPTH_MAX)
    check_json('"' + "ü" * (JSON_BYTES_MAX // 2 - 1) + '"')
    for text in ("[" * 33 + "]" * 33, "[" * 60_000, '"' + "ü" * (JSON_BYTES_MAX // 2) + '"', "9" * 10_000):
        with pytest.raises(RejectedSegment):
            check_json(text)


@pytest.mark.parametrize("text", ["[]", "null", '"{}"', "1"])
def test_a_document_is_an_object(text: str) -> None:
    check_json(text)
    with pytest.raises(RejectedSegment, match="is not a JSON object"):
        check_json_object(text)
    check_json_object('{"a":{}}')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1 << 63, "\0", "\ud800", {"\udfff": 1}, "x" * JSON_BYTES_MAX, {1, 2}])
def test_what_has_no_canonical_text(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical_json(value)


def test_a_backslash_before_u0000_is_no_escape() -> None:
    assert canonical_json("\\u0000") == '"\\\\u0000"'
