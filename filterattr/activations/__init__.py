"""What every channel contributes along a line of inputs: the same passes serve all layers."""
