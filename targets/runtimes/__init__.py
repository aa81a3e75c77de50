"""One file per runtime: build, load, run, facts. Standard library, numpy and the runtime only."""
