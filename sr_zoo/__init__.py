"""The reference application of `filterattr`: blind super-resolution networks, degradations, training, weights."""
