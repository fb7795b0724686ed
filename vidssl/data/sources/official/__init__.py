"""Data sets that are read by the files they are published with; docs/data/ has a page for each."""
