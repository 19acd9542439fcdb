"""What an attribution returns: scores, selections, and the numbers that say whether to believe them."""
