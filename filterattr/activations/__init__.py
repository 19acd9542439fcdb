"""One call of `ChannelAttributor.attribute`: one sweep along a line of inputs for all layers."""
