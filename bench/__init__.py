"""Measurements of speed, memory and error, run by hand; they time nothing in tests."""
