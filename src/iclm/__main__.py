"""`python -m iclm` is the command `iclm`."""

from iclm.cli import main

main()
