"""`python -m minicompress` is the command `minicompress`."""

from minicompress.cli import main

main()
