"""The torch-free worker program: the same on this machine and on a board."""
