"""Does a round help? Statistics over evaluations."""
