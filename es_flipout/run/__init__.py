"""A run: its configuration, its generations, its files, its metrics."""
