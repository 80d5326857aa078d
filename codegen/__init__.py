"""Kernel declarations, emitters, lowering and the native build."""
