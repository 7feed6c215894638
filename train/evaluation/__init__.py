"""All scoring of the project: plain functions over arrays, texts and iterables, run by `dnd evaluate`."""
