"""The sub-commands of `dnd`, one file for each part of the way; infra/cli.py puts them together."""
