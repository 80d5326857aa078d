"""From a torch program to a graph: capture, pure values, sizes, what callers see."""
