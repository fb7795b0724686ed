"""``vidssl data shard`` and ``vidssl data index``: data in tar files, packed here or by others."""
