"""The RQ-VAE and its training; image shards to code shards, and code shards back to pictures."""
