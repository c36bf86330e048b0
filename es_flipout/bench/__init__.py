"""Measurements of speed: contestants side by side in one run, in alternating rounds."""
