"""`python -m nsync` is `nsync`."""

from nsync.cli.main import main

main()
