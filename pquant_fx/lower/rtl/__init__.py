"""Frozen graph -> alkaid's adder graphs -> Verilog or VHDL -> simulation and synthesis with open tools.

`adapter` is the only file that imports alkaid, `tools` the only one that starts other programs.
"""
