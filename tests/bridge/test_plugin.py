"""Rucio's metadata plugin NSYNC, asked by Rucio's core in a process whose configuration names it."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nsync.rucio_bridge import parked
from tests.support.federation import charter_document
from tests.support.instances import Instance

ASKED = """
import json, sys
from rucio.common.exception import InvalidMetadata, UnsupportedMetadataPlugin
from rucio.common.types import InternalScope
from rucio.core import did
from rucio.core.did_meta_plugins import METADATA_PLUGIN_MODULES
from rucio.db.sqla.session import get_session

session = get_session()()
plugin = METADATA_PLUGIN_MODULES[-1]

def ask(scope, name, plugin="NSYNC"):
    return did.get_metadata(InternalScope(scope), name, plugin=plugin, session=session)

def refused(call, *arguments, **options):
    try:
        call(InternalScope("atlas"), *arguments, session=session, **options)
    except InvalidMetadata as error:
        return str(error)

print(json.dumps({
    "open": ask("atlas", "d1"),
    "small": ask("atlas", "d1.f0", plugin="nsync"),
    "private": ask("cms.private", "mine"),
    "none": ask("atlas", "nothing"),
    "all": {key: str(value) for key, value in ask("atlas", "d1", plugin="ALL").items()},
    "set": refused(plugin.set_metadata, "d1", "nsync_home", "cms"),
    "bulk": refused(plugin.set_metadata_bulk, "d1", {"nsync_home": "cms"}),
    "delete": refused(plugin.delete_metadata, "d1", "nsync_home"),
    "list": refused(plugin.list_dids, {}),
    "core_set": refused(did.set_metadata, "d1", "nsync_home", "cms"),
    "manages": plugin.manages_key("nsync_home", session=session),
}))
"""


def asked(cms: Instance, directory: Path) -> Any:
    config = configparser.ConfigParser(interpolation=None)
    config.read(os.environ["RUCIO_CONFIG"])
    config["database"] = {"default": cms.engine.url.render_as_string(hide_password=False).replace("%", "%%")}
    config["metadata"] = {"plugins": "nsync.rucio_bridge.plugin.NsyncDidMeta"}
    path = directory / "rucio.cfg"
    with path.open("w", encoding="utf-8") as file:
        config.write(file)
    environment = {**os.environ, "RUCIO_CONFIG": str(path)}
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_rucios_core_tells_where_a_did_comes_from_and_nothing_can_be_set(cms: Instance, tmp_path: Path) -> None:
    before = asked(cms, tmp_path)
    assert before["open"] == {}, "no charter is in force yet"
    cms.bridge.adopt(charter_document(), cms.now_ms)
    with cms.session() as session:
        fact = next(fact for fact in cms.catalogue() if str(fact) == "atlas:d1.f0")
        parked.park(session, "some changeset", [fact], {fact: "it does not fit"}, 1)
    found = asked(cms, tmp_path)
    version = found["open"].pop("nsync_version")
    assert version.startswith("atlas ") and version.split()[1].isdecimal()
    nothing = {"nsync_conflicts": 0, "nsync_conflict_rules": [], "nsync_parked": None}
    assert found["open"] == {"nsync_origin": "atlas", "nsync_home": "atlas", **nothing}
    assert found["small"]["nsync_parked"] == "it does not fit"
    assert found["private"] == found["none"] == {}
    assert found["all"]["nsync_home"] == "atlas" and found["all"]["did_type"] and found["all"]["name"] == "d1"
    for how in ("set", "bulk", "delete", "list"):
        assert "plugin NSYNC only tells what the shared namespace says" in found[how]
    assert "No plugin manages" in found["core_set"] and found["manages"] is False
