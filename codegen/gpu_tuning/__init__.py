"""Which schedule a GPU kernel runs with: measured, from a database, or by a model of the GPU."""
