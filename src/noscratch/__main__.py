"""`python -m noscratch` is the command `noscratch`."""

from noscratch.cli import main

main()
