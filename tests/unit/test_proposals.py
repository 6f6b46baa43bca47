"""The next version of a charter: what may be proposed, what it names, who must sign, and from when on it counts (R5.1)."""

from __future__ import annotations

import json
from typing import Any, Optional

import pytest

from nsync.auth.keys import SigningKey, verify
from nsync.authority import amendments, proposals
from nsync.authority.charter import Place
from nsync.authority.proposals import CharterFile, Edit
from nsync.errors import ConfigError
from tests.support.federation import AUTHOR, KEYS, NAMES, ROOTS, charter_document

DUNE, DUNE_ROOT = SigningKey(b"\x55" * 32), SigningKey(b"\x56" * 32)
END, OTHER_END = Place(7, b"h" * 16), Place(9, b"i" * 16)
FILE = proposals.read(charter_document(guests=False), verify)


def entry(name: str = "dune", key: SigningKey = DUNE, root: SigningKey = DUNE_ROOT, scope: Optional[str] = None) -> dict[str, Any]:
    only = {
        "name": name,
        "key": key.public.hex(),
        "incarnation": "ee" * 16,
        "url": f"https://{name}.example.org",
        "scopes": [scope or name],
    }
    return {"name": name.upper(), "roots": [root.public.hex()], "threshold": 1, "instances": [only]}


def signed(file: CharterFile, *names: str) -> CharterFile:
    for name in names:
        file = proposals.sign(file, ROOTS[name])
    return proposals.read(file.text(), verify)


def agreed(*edits: Edit, file: CharterFile = FILE) -> CharterFile:
    """The file once all have signed."""
    return signed(proposals.propose(file, edits), *NAMES)


def test_an_amendment_counts_from_the_signature_of_the_threshold_on() -> None:
    file = proposals.propose(FILE, [proposals.admit(entry())])
    for count, name in enumerate(NAMES):
        seen = proposals.read(file.text(), verify)
        assert seen.proposal is not None and seen.charter.version == 1
        assert seen.missing[:1] == (f"{count} of the 3 members needed have signed version 2",)
        assert [text.split("'")[1] for text in seen.missing[1:]] == [n.upper() for n in NAMES[count:]]
        assert amendments.read(file.text(), verify).charter.version == 1, "to a node it is as if it were not there"
        file = proposals.sign(seen, ROOTS[name])
    seen = proposals.read(file.text(), verify)
    assert seen.proposal is None and seen.missing == () and seen.charter.version == 2
    charter = amendments.read(file.text(), verify).charter
    assert charter.by_name("dune") is not None and charter.federation == FILE.charter.federation
    assert amendments.go_on(FILE.charter, file.text(), verify) == charter


def test_the_threshold_is_that_of_the_version_before() -> None:
    two = agreed(proposals.need(2))
    assert two.charter.threshold == 2
    file = proposals.propose(two, [proposals.admit(entry()), proposals.need(1)])
    assert signed(file, "cms").charter.version == 2
    assert signed(file, "cms", "belle2").charter.version == 3


def test_only_root_keys_of_the_version_in_force_sign() -> None:
    file = proposals.propose(FILE, [proposals.admit(entry())])
    for key in (DUNE_ROOT, DUNE, KEYS["cms"]):
        with pytest.raises(ConfigError, match="is no root key of version 1"):
            proposals.sign(file, key)
    with pytest.raises(ConfigError, match="proposes nothing that could be signed"):
        proposals.sign(FILE, ROOTS["cms"])


def test_the_next_version_is_signed_by_the_newcomer_too() -> None:
    file = proposals.propose(agreed(proposals.admit(entry())), [proposals.need(2)])
    file = signed(file, *NAMES)
    assert file.missing[0] == "3 of the 4 members needed have signed version 3"
    assert proposals.read(proposals.sign(file, DUNE_ROOT).text(), verify).charter.version == 3


def test_one_who_retires_stays_listed_with_its_end() -> None:
    charter = agreed(proposals.retire("cms", END)).charter
    cms = charter.by_name("cms")
    assert cms is not None and cms.retired == END and charter.life(AUTHOR["cms"]).final == END


def test_the_next_incarnation_names_where_the_one_before_ended() -> None:
    charter = agreed(proposals.succeed("cms", DUNE.public.hex(), "dd" * 16, END)).charter
    cms = charter.by_name("cms")
    assert cms is not None and cms.key == DUNE.public and [life.final for life in cms.past] == [END]
    assert charter.life(AUTHOR["cms"]).final == END


def test_a_moved_scope_has_its_old_home_up_to_the_heads_that_are_named() -> None:
    finals = {AUTHOR["atlas"]: END, AUTHOR["cms"]: OTHER_END}
    charter = agreed(proposals.move("atlas", "cms", finals)).charter
    assert charter.home("atlas.open").name == "cms"
    assert [(era.home.name, era.until) for era in charter.eras("atlas.open")] == [("atlas", finals), ("cms", None)]


def test_an_instance_can_be_reached_elsewhere() -> None:
    cms = agreed(proposals.reach("cms", "https://new.example.org/", ["ab" * 32])).charter.by_name("cms")
    assert cms is not None and cms.url == "https://new.example.org" and cms.tls == (b"\xab" * 32,)


def test_a_member_can_have_another_instance() -> None:
    more = entry("cms-t1", scope="t1", root=ROOTS["cms"])
    charter = agreed(proposals.admit({**more, "name": "CMS"})).charter
    assert [i.name for i in charter.instances if i.member == "CMS"] == ["cms", "cms-t1"] and len(charter.members) == 3


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (proposals.admit({**entry(), "name": "CMS"}), "CMS is a member with other root keys"),
        (proposals.admit(entry(scope="atlas.x")), "lies within 'atlas' of atlas"),
        (proposals.admit({**entry("cms", scope="x"), "name": "NEW"}), "instance name cms stands twice"),
        (proposals.admit({"name": "DUNE"}), "malformed"),
        (proposals.retire("dune", END), "names no instance 'dune'"),
        (proposals.succeed("cms", KEYS["cms"].public.hex(), "cb" * 8, END), "incarnation of 16"),
        (proposals.move("none", "cms", {}), "no instance has the scope prefix 'none'"),
        (proposals.move("atlas", "none", {}), "names no instance 'none'"),
        (proposals.need(4), "threshold 4 with 3 members"),
        (proposals.reach("cms", "ftp://x"), "must start with http"),
    ],
)
def test_what_could_never_count_is_not_proposed(edit: Edit, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        proposals.propose(FILE, [edit])


def test_nobody_comes_back_and_nothing_is_proposed_twice() -> None:
    file = agreed(proposals.retire("cms", END))
    with pytest.raises(ConfigError, match="cms has retired at 7; that cannot change"):
        proposals.propose(file, [proposals.retire("cms", OTHER_END)])
    with pytest.raises(ConfigError, match="proposes version 3 already"):
        proposals.propose(proposals.propose(file, [proposals.need(1)]), [proposals.need(2)])


def test_a_move_that_shuts_out_guests_is_not_proposed() -> None:
    file = proposals.read(charter_document(), verify)
    with pytest.raises(ConfigError, match="which are not its own scopes"):
        proposals.propose(file, [proposals.move("atlas", "cms", {})])


def test_two_valid_successors_freeze_the_charter_and_the_file_says_so() -> None:
    one, two = agreed(proposals.need(1)), agreed(proposals.need(2))
    both = json.dumps([*one.documents, two.documents[-1]])
    with pytest.raises(ConfigError, match="version 2 exists twice"):
        proposals.read(both, verify)


@pytest.mark.parametrize("spoil", [lambda d: d["charter"].update(previous="00" * 16), lambda d: d["charter"].update(version=3)])
def test_what_does_not_follow_is_no_proposal(spoil: Any) -> None:
    file = proposals.propose(FILE, [proposals.need(1)])
    last = json.loads(json.dumps(file.documents[-1]))
    spoil(last)
    with pytest.raises(ConfigError, match="amendment: "):
        proposals.read(json.dumps([file.documents[0], last]), verify)


def test_an_amendment_alone_is_no_charter_file() -> None:
    alone = json.dumps(agreed(proposals.need(1)).documents[-1])
    with pytest.raises(ConfigError, match="the genesis comes first"):
        proposals.read(alone, verify)


def test_a_first_charter_is_signed_in_either_form() -> None:
    unsigned = {**json.loads(charter_document()), "signatures": {}}
    for text in (json.dumps(unsigned), json.dumps([unsigned])):
        file = proposals.read(text, verify)
        assert file.proposal is not None and len(file.missing) == 3
        assert signed(file, *NAMES).proposal is None
    with pytest.raises(ConfigError, match="the genesis is not signed by all"):
        proposals.read(json.dumps([unsigned, unsigned]), verify)
