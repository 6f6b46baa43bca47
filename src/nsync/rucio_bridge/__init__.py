"""Between the catalogue and a Rucio database: capture and materialise, in one transaction each (DESIGN 7). The only door for rucio."""
