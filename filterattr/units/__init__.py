"""Units: of one parameter, groups over several parameters, and the layouts of layers."""
