"""A collection of one's own: from files to a list, from a list to parts, and what the videos are like."""
