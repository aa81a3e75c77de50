"""Stage quantize_aware: trains a model with its rounding to int8 in place, and writes the int8 graph."""
