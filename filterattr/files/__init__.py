"""Files: written whole or not at all, and read only after they are known to be sound."""
