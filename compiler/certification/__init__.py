"""A pass held to its contract: programs to try it on, and arithmetic that hides no error."""
