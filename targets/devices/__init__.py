"""Boards that engines are measured on: local, by SSH, or pretended, all behind one protocol."""
