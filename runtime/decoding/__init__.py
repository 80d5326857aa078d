"""Compiled decoders as they run: states, their memory, the loop that makes tokens."""
