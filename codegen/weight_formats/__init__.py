"""Weights in few bits: what is stored, what it stands for, and how it is chosen."""
