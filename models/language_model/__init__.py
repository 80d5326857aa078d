"""A small language model of Python source: its corpus, training, checkpoint and evaluation."""
