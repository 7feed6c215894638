"""One self-contained page about a root: counts, pictures, curves and figures."""
