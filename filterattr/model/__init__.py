"""The user's model computes with other weights for a while, and gets its own back."""
