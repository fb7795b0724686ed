"""``vidssl data check``: every file of a data set looked at once, written down and summed up."""
