"""Sources, renderers and image shards; and the runner that puts units of work on Ray."""
