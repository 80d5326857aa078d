"""Decoders as programs over state: the cache, its policies, and the models that bring one."""
