"""The user's loss: what it must be, what it may not change, and where it ran out of memory."""
