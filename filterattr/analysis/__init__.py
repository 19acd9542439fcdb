"""What a result means: what a score has to beat."""
