"""How latency and memory are measured, and the record of a measurement."""
