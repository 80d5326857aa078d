"""Plain torch modules and real checkpoints: a customer of infopt."""
