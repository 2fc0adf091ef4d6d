"""Designs through yosys: the runs from which `FrozenModel.estimate` has its coefficients, and how good it is on them."""
