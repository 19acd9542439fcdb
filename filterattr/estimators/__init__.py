"""One call of `attribute`, from its samples to its result: with nodes that are fixed, refined or drawn."""
