"""One shared OpenData namespace over independent Rucio instances."""

__version__ = "0.1.0"
