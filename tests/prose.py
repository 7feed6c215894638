"""Read by the fork server of tests/command.py before it forks: the standard library's prose, two seconds of parsing."""

from data_specs.sources.docstrings import prose

prose()
