"""What is done to a model: one folder per stage, listed in catalog.py."""
