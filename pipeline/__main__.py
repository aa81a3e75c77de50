"""`python -m pipeline` is `vitrim`."""

from pipeline.cli.app import main

main()
