"""`python -m concordct.cli`, for `torchrun -m concordct.cli train ...`."""

from concordct.cli import main

main()
