"""Experiments: arms of one spec that differ in a few keys, trained, drawn and scored alike."""
