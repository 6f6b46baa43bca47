"""File DIDs as experiments name them: what the workloads are made of, without limit, the same for the same seed.

ATLAS: a derivation dataset of a production task, files numbered within the task, names that differ in a few digits.
CMS: a block of a data tier, files named by GUID, in directories of a thousand. Checksums and sizes are random, as real ones are.
Paths are those of a non-deterministic RSE: the name below a directory that the RSE's prefix does not tell.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple


class File(NamedTuple):
    """A file, the dataset that it is in, and where it lies."""

    scope: str
    name: str
    size: int
    adler32: bytes
    md5: bytes
    dataset: str
    path: str


_CAMPAIGNS = ("mc20_13TeV", "mc23_13p6TeV", "data18_13TeV", "data22_13p6TeV")
_PHYSICS = (
    ("410470", "PhPy8EG_A14_ttbar_hdamp258p75_nonallhad"),
    ("700320", "Sh_2211_Zee_maxHTpTV2_BFilter"),
    ("801167", "Py8EG_A14NNPDF23LO_jj_JZ2"),
    ("345060", "PowhegPythia8EvtGen_NNLOPS_nnlo_30_ggH125_ZZ4l"),
    ("601229", "PhPy8EG_A14_ttbar_hdamp258p75_SingleLep"),
)
_PRIMARY = ("JetHT", "SingleMuon", "DoubleEG", "MET", "TTToSemiLeptonic_TuneCP5_13TeV-powheg-pythia8")
_ERAS = ("Run2016G", "Run2016H", "Run2018A", "RunIISummer20UL16")
_TIERS = (("NANOAOD", "UL2016_MiniAODv2_NanoAODv9-v1"), ("MINIAOD", "UL2016_MiniAODv2-v2"), ("AOD", "21Feb2020_UL2016-v1"))


def files(seed: int) -> Iterator[File]:
    """Datasets of ATLAS and CMS in turn, each with 20 to 400 files."""
    rng = random.Random(seed)
    for make in itertools.cycle((atlas, cms)):
        yield from make(rng, rng.randint(20, 400))


def atlas(rng: random.Random, n: int) -> Iterator[File]:
    campaign, (run, physics) = rng.choice(_CAMPAIGNS), rng.choice(_PHYSICS)
    task = rng.randint(20_000_000, 45_000_000)
    tags = f"e{rng.randint(3000, 8999)}_s{rng.randint(3000, 4999)}_r{rng.randint(9000, 15999)}_p{rng.randint(4000, 6999)}"
    dataset = f"{campaign}.{run}.{physics}.deriv.DAOD_PHYSLITE.{tags}_tid{task}_00"
    for number in range(1, n + 1):
        name = f"DAOD_PHYSLITE.{task}._{number:06d}.pool.root.1"
        yield _file(rng, campaign, name, dataset, f"rucio/{campaign}/{name}")


def cms(rng: random.Random, n: int) -> Iterator[File]:
    primary, era, (tier, version) = rng.choice(_PRIMARY), rng.choice(_ERAS), rng.choice(_TIERS)
    block = f"/{primary}/{era}-{version}/{tier}#{_guid(rng)}"
    folder = f"{era}/{primary}/{tier}/{version}/{rng.randint(1, 30) * 10_000}"
    for _ in range(n):
        leaf = f"{folder}/{_guid(rng).upper()}.root"
        yield _file(rng, "cms", f"/store/data/{leaf}", block, f"cms/{leaf}")


def _file(rng: random.Random, scope: str, name: str, dataset: str, path: str) -> File:
    size = int(rng.lognormvariate(20.5, 0.8))
    return File(scope, name, size, rng.getrandbits(32).to_bytes(4, "big"), rng.getrandbits(128).to_bytes(16, "big"), dataset, path)


def _guid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
