"""One JSON record of a finished build, and pages drawn from it."""
