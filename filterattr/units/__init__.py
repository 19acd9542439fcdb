"""What is scored: units of one parameter, groups over several, and the layouts of layers."""
