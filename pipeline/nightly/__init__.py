"""Nights: one matrix run again and again, and what has changed since."""
