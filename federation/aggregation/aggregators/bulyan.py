"""Bulyan: first who, then number by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..blocks import Float64s
from ..collected import Combine
from ..distances import chosen_by_bulyan
from ..order_statistics import NearMedianMean
from .aggregator import UpdateFacts
from .collecting import Collecting, Plan
from .krum import BYZANTINE


class Bulyan(Collecting):
    """Bulyan of Krum (El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in
    Byzantium", ICML 2018, section 4). f clients may be hostile. S are theta = n - 2 f updates, one after the other the
    best by Krum of those left (with as many left, their n' - f - 2 nearest, at least one); then for every number k

        x_{t+1}[k] = mean of the theta - 2 f values x_i[k], i in S, nearest to median { x_i[k] : i in S }

    Of equal scores the first client's, by its id; of two values as near, the smaller. Needs n >= 4 f + 3 updates.
    """

    name = "bulyan"
    title = "Bulyan (Krum, then near the median)"
    hint = "Bulyan chooses updates by Krum and averages what lies near their median, number by number."
    paper = "El Mhamdi et al., ICML 2018, section 4"
    measures = True
    arguments = (BYZANTINE,)

    def least_updates(self, arguments: Mapping[str, Any]) -> int:
        return 4 * int(arguments["byzantine"]) + 3

    def decide(
        self, products: Float64s, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]
    ) -> Plan:
        chosen = chosen_by_bulyan(products, arguments["byzantine"])
        return {"reads": sorted(chosen), "averaged": len(chosen) - 2 * arguments["byzantine"]}

    def combiner(self, plan: Plan, count: int) -> Combine:
        return NearMedianMean(count, int(plan["averaged"])).of
