"""What tells a machine's clocks, heat and power, a module per source. Standard library only, in Python 3.10."""
