"""Which names this Rucio's schema takes: the policy package's expressions and widths, compiled once."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Optional

from jsonschema.validators import validator_for
from rucio.common.schema import get_schema_value


def is_valid(what: str, value: str) -> bool:
    """Whether the schema takes `value` for an account, RSE, scope or name."""
    return bool(_validator(what).is_valid(value))


def misfit(what: str, value: str) -> Optional[str]:
    """What is wrong with a scope or name, by this Rucio's schema."""
    width, pattern = _limits(what)
    if len(value) > width:
        return f"{what} {value[:60]!r}… has {len(value)} characters; this Rucio's schema holds {width}"
    if _LEADS_OUT.search(value):
        return f"{what} {value!r} names a path outside of its directory"
    if not (pattern.search(value) if pattern is not None else is_valid(what, value)):
        return f"{what} {value!r} is not allowed by this Rucio's schema (policy package)"
    return None


@cache
def _validator(what: str) -> Any:
    """Made once, since `validate_schema` takes a millisecond a name."""
    schema = get_schema_value(what.upper())
    return validator_for(schema)(schema)


@cache
def _limits(what: str) -> tuple[int, Optional[re.Pattern[str]]]:
    """How wide a column is, and the expression of this Rucio's schema where it says nothing else: a validator takes ten times as long."""
    width, rules = int(get_schema_value(f"{what.upper()}_LENGTH")), get_schema_value(what.upper())
    is_plain = (
        isinstance(rules, dict) and rules.get("type") == "string" and rules.keys() <= _PLAIN and rules.get("maxLength", width) == width
    )
    return width, re.compile(rules["pattern"]) if is_plain and "pattern" in rules else None


_PLAIN = {"description", "type", "pattern", "maxLength"}
_LEADS_OUT = re.compile(r"(?:^|/)\.{1,2}(?:/|\Z)")
