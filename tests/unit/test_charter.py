"""The charter: every member signs all of it, and every scope and DOI has one home at most (R5.1, R5.2)."""

from __future__ import annotations

import copy
import json
from typing import Any, Callable

import pytest

from nsync.auth.keys import SigningKey, verify
from nsync.authority import charter
from nsync.authority.charter import Charter
from nsync.authority.documents import CHARTER_BYTES_MAX, MEMBERS_MAX, check, draft, load, sign, signers
from nsync.errors import ConfigError
from tests.support.federation import AUTHOR, CHARTER, KEYS, NAMES, ROOTS, charter_document

SECOND = SigningKey(b"\x77" * 32)
ALL = tuple(ROOTS.values())


def document() -> Any:
    return json.loads(charter_document())


def signed(change: Callable[[Any], None], keys: Any = ALL) -> Charter:
    """The charter of the tests with something else in it, signed anew."""
    made = draft("test", document()["charter"]["members"])
    change(made["charter"])
    for key in keys:
        made = sign(made, key)
    return load(json.dumps(made), verify)


def member(body: Any, name: str) -> Any:
    return next(m for m in body["members"] if m["name"] == name.upper())


def instance(body: Any, name: str) -> Any:
    return member(body, name)["instances"][0]


def setting(name: str, /, **values: Any) -> Callable[[Any], None]:
    return lambda body: instance(body, name).update(values)


def of_member(name: str, /, **values: Any) -> Callable[[Any], None]:
    return lambda body: member(body, name).update(values)


def refused(text: str, change: Callable[[Any], None], **kwargs: Any) -> None:
    with pytest.raises(ConfigError, match=text):
        signed(change, **kwargs)


def nothing(body: Any) -> None:
    pass


def test_who_is_who() -> None:
    assert {i.name for i in CHARTER.instances} == set(NAMES)
    for name in NAMES:
        me = CHARTER.by_name(name)
        assert me is not None and CHARTER.by_author(AUTHOR[name]) is me and me.key == KEYS[name].public
    assert CHARTER.by_name("nobody") is None and CHARTER.by_author(bytes(16)) is None


@pytest.mark.parametrize(
    ("scope", "home", "writers"),
    [
        ("atlas", "atlas", {"atlas"}),
        ("atlas.x", "atlas", {"atlas"}),
        ("atlas.shared", "atlas", {"atlas", "cms", "belle2"}),
        ("atlas.shared.x", "atlas", {"atlas", "cms", "belle2"}),
        ("cms", "cms", {"cms"}),
        ("Atlas", None, set()),
        ("user", None, set()),
        ("", None, set()),
    ],
)
def test_scopes_have_one_home_and_its_guests(scope: str, home: Any, writers: set[str]) -> None:
    found = CHARTER.home(scope)
    assert (found.name if found else None) == home
    assert {i.name for i in CHARTER.instances if CHARTER.may_write(i, scope)} == writers


@pytest.mark.parametrize(
    ("doi", "home"),
    [("10.5072/ATLAS.1", "atlas"), ("10.5072/atlas.1", "atlas"), ("10.5072/CMS.x", "cms"), ("10.5072/ATLAS", None), ("10.9999/X", None)],
)
def test_dois_have_one_home_whatever_their_case(doi: str, home: Any) -> None:
    found = CHARTER.doi_home(doi)
    assert (found.name if found else None) == home


def test_the_federation_is_what_was_signed() -> None:
    assert signed(nothing).federation == CHARTER.federation
    assert signed(setting("cms", url="http://elsewhere")).federation != CHARTER.federation
    more = document()
    more["signatures"][SECOND.public.hex()] = "00" * 64  # signatures are not part of it
    assert load(json.dumps(more), verify).federation == CHARTER.federation


# ---- signatures


@pytest.mark.parametrize("missing", NAMES)
def test_every_member_must_have_signed(missing: str) -> None:
    refused(f"'{missing.upper()}' has 0 valid signatures of the 1 needed", nothing, keys=[ROOTS[n] for n in NAMES if n != missing])


@pytest.mark.parametrize(
    ("threshold", "keys", "holds"),
    [
        (1, ["cms"], True),
        (1, ["second"], True),
        (2, ["cms"], False),
        (2, ["second"], False),
        (2, ["cms", "second"], True),
        (2, ["cms", "cms"], False),
    ],
)
def test_a_threshold_counts_distinct_roots(threshold: int, keys: list[str], holds: bool) -> None:
    roots = {**ROOTS, "second": SECOND}
    change = of_member("cms", roots=[ROOTS["cms"].public.hex(), SECOND.public.hex()], threshold=threshold)
    signers = [ROOTS["atlas"], ROOTS["belle2"], *(roots[k] for k in keys)]
    if holds:
        assert signed(change, keys=signers).by_name("cms") is not None
    else:
        refused("has 1 valid signatures of the 2 needed", change, keys=signers)


def test_one_root_written_in_two_ways_counts_once() -> None:
    root = ROOTS["cms"].public.hex()
    made = draft("test", document()["charter"]["members"])
    member(made["charter"], "cms").update(roots=[root, root.upper()], threshold=2)
    made["signatures"][root.upper()] = made["signatures"][root] = document()["signatures"][root]
    with pytest.raises(ConfigError, match="threshold 2 with 1 root keys"):
        load(json.dumps(made), verify)


@pytest.mark.parametrize(("threshold", "roots"), [(0, 1), (2, 1), (-1, 1), (1, 0)])
def test_a_threshold_is_one_to_the_number_of_roots(threshold: int, roots: int) -> None:
    refused(
        f"has threshold {threshold} with {roots} root keys",
        of_member("cms", roots=[ROOTS["cms"].public.hex()][:roots], threshold=threshold),
    )


def test_a_signature_for_another_purpose_or_key_counts_for_nothing() -> None:
    for spoil in (
        lambda text: KEYS["cms"].sign("charter", text),
        lambda text: ROOTS["cms"].sign("segment", text),
        lambda text: ROOTS["cms"].sign("charter", text + b" "),
        lambda text: b"",
        lambda text: bytes(64),
    ):
        made = document()
        text = json.dumps(made["charter"], sort_keys=True, separators=(",", ":")).encode()
        made["signatures"][ROOTS["cms"].public.hex()] = spoil(text).hex()
        with pytest.raises(ConfigError, match="'CMS' has 0 valid signatures"):
            load(json.dumps(made), verify)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in _paths(inner, (*path, key)))]


@pytest.mark.parametrize("path", _paths(document()["charter"])[1:], ids=str)
def test_no_field_can_be_changed_or_taken_away_after_signing(path: tuple[Any, ...]) -> None:
    def changed(value: Any) -> Any:
        if isinstance(value, str):
            flipped = value[:-1] + ("0" if value[-1] != "0" else "1")
            return flipped
        return value + 1 if isinstance(value, int) else {} if isinstance(value, list) else []

    for remove in (False, True):
        made = copy.deepcopy(document())
        holder = made["charter"]
        for key in path[:-1]:
            holder = holder[key]
        if remove:
            del holder[path[-1]]
        else:
            holder[path[-1]] = changed(holder[path[-1]])
        with pytest.raises(ConfigError):
            load(json.dumps(made), verify)


# ---- what a charter may say


PREFIXES = [
    ({"cms": ["cms", "atlas"]}, "scope prefix 'atlas' of .* lies within 'atlas'"),
    ({"cms": ["atlas.x"]}, "scope prefix 'atlas.x' of cms lies within 'atlas' of atlas"),
    ({"cms": ["atl"]}, "scope prefix 'atlas' of atlas lies within 'atl' of cms"),
    ({"atlas": ["a", "a.shared", "atlas.shared"], "cms": ["a.x"]}, "scope prefix 'a.x' of cms lies within 'a' of atlas"),
    ({"atlas": ["a", "aa", "atlas.shared"], "belle2": ["ab"], "cms": ["ac"]}, "lies within 'a' of atlas"),
    ({"cms": ["cms", ""]}, "non-empty strings"),
    ({"cms": ["cms", 7]}, "non-empty strings"),
]


@pytest.mark.parametrize(("scopes", "text"), PREFIXES)
def test_scope_prefixes_are_disjoint(scopes: dict[str, list[Any]], text: str) -> None:
    def change(body: Any) -> None:
        for name, prefixes in scopes.items():
            instance(body, name)["scopes"] = prefixes

    refused(text, change)


def test_an_instance_may_own_prefixes_within_its_own() -> None:
    found = signed(setting("cms", scopes=["cms", "cms.top", "ch"])).home("cms.top.x")
    assert found is not None and found.name == "cms"


@pytest.mark.parametrize("dois", [["10.5072/ATLAS."], ["10.5072/atlas.x"], ["10.5072/"], ["10.5072/", "10.5072/AT"]])
def test_doi_prefixes_are_disjoint_whatever_their_case(dois: list[str]) -> None:
    refused("DOI prefix .* lies within", setting("cms", dois=dois))


@pytest.mark.parametrize(
    ("guests", "text"),
    [
        ({"nobody": ["atlas.shared"]}, "names the guest 'nobody', who is no other instance"),
        ({"atlas": ["atlas.shared"]}, "names the guest 'atlas', who is no other instance"),
        ({"cms": ["cms"]}, "which are not its own scopes"),
        ({"cms": ["atla"]}, "which are not its own scopes"),
        ({"cms": ["atlas", "belle2"]}, "which are not its own scopes"),
        ({"cms": [""]}, "non-empty strings"),
        (["cms"], "malformed"),
    ],
)
def test_guests_are_other_instances_within_ones_own_scopes(guests: Any, text: str) -> None:
    refused(text, setting("atlas", guests=guests))


@pytest.mark.parametrize("name", ["", "CMS", "c ms", "cms-", "-cms", "2cms", "c_ms", "c--ms", "x" * 20, "cms\n", "ćms", "../x", None, 7])
def test_instance_names_are_fit_for_accounts(name: Any) -> None:
    refused("charter(:| is malformed)", setting("cms", name=name))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (setting("cms", key=KEYS["atlas"].public.hex()), "instance key .* stands twice"),
        (setting("cms", name="atlas"), "instance name atlas stands twice"),
        (setting("cms", key="00" * 31), "key of 32 bytes"),
        (setting("cms", key="zz" * 32), "malformed"),
        (setting("cms", incarnation="00" * 15), "incarnation of 16"),
        (setting("cms", url="ftp://cms"), "must start with http"),
        (setting("cms", url=None), "must start with http"),
        (setting("cms", scopes=None), "malformed"),
        (of_member("cms", roots=["zz"]), "malformed"),
        (of_member("cms", threshold="1"), "malformed"),
        (of_member("cms", instances=None), "malformed"),
        (lambda body: body.update(format=2), "format 2; this nsync reads format 1"),
        (lambda body: body.update(version="x"), "malformed"),
        (lambda body: body.update(members=[]), "charter names 0 members"),
        (lambda body: body.update(members=body["members"] * (MEMBERS_MAX // 3 + 1)), f"1 to {MEMBERS_MAX}"),
    ],
)
def test_a_charter_that_says_something_else_is_refused(change: Callable[[Any], None], text: str) -> None:
    refused(text, change)
    body = document()["charter"]
    change(body)
    for checked in (lambda: check({"charter": body, "signatures": {}}), lambda: sign({"charter": body, "signatures": {}}, ROOTS["cms"])):
        with pytest.raises(ConfigError, match=text):  # before anybody has signed
            checked()


def test_a_draft_is_checked_before_anybody_signs() -> None:
    members = document()["charter"]["members"]
    members[1]["instances"][0]["scopes"] = ["atlas.x"]
    with pytest.raises(ConfigError, match="lies within 'atlas' of atlas"):
        draft("test", members)


def test_only_a_root_key_of_a_member_signs() -> None:
    for key in (SECOND, KEYS["cms"]):
        with pytest.raises(ConfigError, match="is no member's root key"):
            sign(document(), key)


def test_whose_signatures_are_missing() -> None:
    made = draft("test", document()["charter"]["members"])
    for left in (3, 2, 1):
        assert len(signers(check(made), made, verify).missing) == left
        made = sign(made, ALL[3 - left])
    assert signers(check(made), made, verify).missing == ()


NO_CHARTERS = {
    **{text: text for text in ("{", "null", "[]", "7", '"x"', "{}", '{"charter": {}}', '{"charter": null, "signatures": {}}')},
    "nothing": "",
    "signatures a number": '{"charter": {"format": 1}, "signatures": 7}',
    "deep arrays": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "too long": " " * (CHARTER_BYTES_MAX + 1),
    "a number of 5000 digits": '{"charter": {"format": 1' + "0" * 5000 + '}, "signatures": {}}',
}


@pytest.mark.parametrize("text", NO_CHARTERS.values(), ids=NO_CHARTERS.keys())
def test_what_is_no_charter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^charter "):
        load(text, verify)


def test_ids_differ_by_key_and_incarnation() -> None:
    ids = {charter.author_id(key, incarnation) for key in (bytes(32), b"k" * 32) for incarnation in (bytes(16), b"i" * 16)}
    assert len(ids) == 4 and {len(i) for i in ids} == {16}
