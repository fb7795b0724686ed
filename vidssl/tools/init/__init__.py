"""A whole recipe for videos of one's own and this machine, every value with its reason."""
