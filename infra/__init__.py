"""The `dnd` command, demo, report and cluster files. Nobody imports this floor."""
