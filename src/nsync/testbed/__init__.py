"""The testbed: real Rucio servers and nsync nodes on one machine, with a network between them that can be cut."""
