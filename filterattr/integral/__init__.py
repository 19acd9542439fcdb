"""How the integral is computed: quadrature, path, slots, hooks, units, storage; each independent of the others."""
