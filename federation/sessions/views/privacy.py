"""What the page of a private session says of it."""

from __future__ import annotations

from dataclasses import dataclass

from federation.models.charts import Chart
from federation.sessions.config import PrivacySettings, SessionConfig
from federation.sessions.models import Session
from federation.sessions.selectors import epsilons_of


@dataclass(frozen=True)
class PrivacyFacts:
    """`spent`: epsilon up to the last round; None: no round yet, or with `unbounded` no bound at all."""

    settings: PrivacySettings
    points: list[tuple[int, float]]
    unbounded: bool

    @property
    def spent(self) -> float | None:
        return self.points[-1][1] if self.points else None

    @property
    def left(self) -> float | None:
        """Of the budget; None without one."""
        budget = self.settings.max_epsilon
        return None if budget is None else max(0.0, budget - (self.spent or 0.0))

    @property
    def chart(self) -> dict[str, Chart]:
        """The curve of epsilon, and the budget as a line, for the charts of the page."""
        if not self.points:
            return {}
        lines: Chart = [("spent", list(self.points))]
        if self.settings.max_epsilon is not None:
            ends = sorted({self.points[0][0], self.points[-1][0]})
            lines.append(("budget", [(number, self.settings.max_epsilon) for number in ends]))
        return {"epsilon": lines}


def privacy_of(session: Session, config: SessionConfig) -> PrivacyFacts | None:
    """None for a session without privacy. One query."""
    if config.privacy is None:
        return None
    rows = epsilons_of(session)
    return PrivacyFacts(
        config.privacy,
        [(number, value) for number, value in rows if value is not None],
        unbounded=bool(rows) and rows[-1][1] is None,
    )
