"""One file per runtime: build, load, run, facts; `nvidia/` is what both TensorRTs share. No torch."""
