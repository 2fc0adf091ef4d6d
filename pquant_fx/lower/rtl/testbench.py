"""A test bench that feeds one sample a clock cycle and writes what comes out: one text for iverilog and verilator, one for VHDL.

Samples and results are files with a line of hexadecimal digits each, the ports' bits side by side, element 0 lowest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["NAME", "packed", "unpacked", "verilog_bench", "vhdl_bench"]

NAME = "bench"
Array = NDArray[np.float64]
Kif = NDArray[np.int64]


def packed(values: Array, kif: Kif) -> list[str]:
    """Real values (samples, elements) of formats kif (3, elements) as hexadecimal lines."""
    widths = kif.sum(axis=0).tolist()
    codes = np.rint(np.ldexp(values, kif[2])).astype(np.int64).tolist()
    lines = []
    for row in codes:
        word, at = 0, 0
        for code, width in zip(row, widths, strict=True):
            word |= (code & ((1 << width) - 1)) << at
            at += width
        lines.append(f"{word:0{max(1, -(-at // 4))}x}")
    return lines


def unpacked(lines: Sequence[str], kif: Kif) -> Array:
    """The real values of hexadecimal lines; NaN for a line with unknown bits (x or z)."""
    widths, signed = kif.sum(axis=0).tolist(), kif[0].tolist()
    values = np.full((len(lines), len(widths)), np.nan)
    for n, line in enumerate(lines):
        try:
            word = int(line, 16)
        except ValueError:
            continue
        for m, (width, sign) in enumerate(zip(widths, signed)):
            code = word & ((1 << width) - 1)
            word >>= width
            values[n, m] = code - (1 << width) if sign and width and code >> (width - 1) else code
    return np.ldexp(values, -kif[2])


def verilog_bench(top: str, inputs: int, outputs: int, samples: int, cycles: int) -> str:
    """inputs, outputs: bits; cycles: clock edges from a sample to its result, 0 for a circuit without registers."""
    clock = ".clk(clk), " if cycles else ""
    return f"""`timescale 1ns / 1ps
module {NAME};
    reg clk = 0;
    reg [{inputs - 1}:0] model_inp;
    wire [{outputs - 1}:0] model_out;
    reg [{inputs - 1}:0] samples [0:{samples - 1}];
    integer n, file;
    {top} dut ({clock}.model_inp(model_inp), .model_out(model_out));
    initial begin
        $readmemh("inputs.hex", samples);
        file = $fopen("outputs.hex", "w");
        for (n = 0; n < {samples + max(cycles - 1, 0)}; n = n + 1) begin
            model_inp = samples[n < {samples} ? n : {samples - 1}];
            #1 clk = 1;
            #1 if (n >= {max(cycles - 1, 0)}) $fdisplay(file, "%h", model_out);
            #1 clk = 0;
            #1;
        end
        $fclose(file);
        $finish;
    end
endmodule
"""


def vhdl_bench(top: str, inputs: int, outputs: int, samples: int, cycles: int) -> str:
    """The same for VHDL-2008."""
    clock = "clk => clk, " if cycles else ""
    padded = -(-inputs // 4) * 4
    return f"""library ieee;
use ieee.std_logic_1164.all;
use std.textio.all;
use ieee.std_logic_textio.all;
entity {NAME} is end {NAME};
architecture simulation of {NAME} is
    signal clk : std_logic := '0';
    signal model_inp : std_logic_vector({inputs - 1} downto 0) := (others => '0');
    signal model_out : std_logic_vector({outputs - 1} downto 0);
begin
    dut : entity work.{top} port map ({clock}model_inp => model_inp, model_out => model_out);
    process
        file source : text open read_mode is "inputs.hex";
        file result : text open write_mode is "outputs.hex";
        variable text_in, text_out : line;
        variable word : std_logic_vector({padded - 1} downto 0);
    begin
        for n in 0 to {samples + max(cycles - 1, 0) - 1} loop
            if not endfile(source) then
                readline(source, text_in);
                hread(text_in, word);
                model_inp <= word({inputs - 1} downto 0);
            end if;
            wait for 1 ns;
            clk <= '1';
            wait for 1 ns;
            if n >= {max(cycles - 1, 0)} then
                hwrite(text_out, model_out);
                writeline(result, text_out);
            end if;
            clk <= '0';
            wait for 2 ns;
        end loop;
        wait;
    end process;
end simulation;
"""
