"""``vidssl data prepare``: videos made smaller and quicker to decode, the originals left as they are."""
