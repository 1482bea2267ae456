"""FedAvg: the mean of the updates, weighted by their examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..accumulate import combine_partials
from .aggregator import Aggregator, Reduction


class FedAvg(Aggregator):
    name = "fedavg"
    title = "FedAvg (their mean)"
    hint = "FedAvg counts each update by its examples."
    plain_mean = True

    def reduce(self, files: Reduction, arguments: Mapping[str, Any]) -> str:
        return combine_partials(files.partials, files.layout, files.out)
