"""What a network costs in hardware, before any tool has synthesised it."""

from pquant_fx.estimate.count import exact_ebops
from pquant_fx.estimate.ebops import Ebops, EbopsRow
from pquant_fx.estimate.joins import JoinCost, JoinCosts, join_costs
from pquant_fx.estimate.plan import EbopsPlan

__all__ = ["Ebops", "EbopsPlan", "EbopsRow", "JoinCost", "JoinCosts", "exact_ebops", "join_costs"]
