"""Who is asking: the start of every query."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from projects.choices import Action

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser

    from projects.models import User


@dataclass(frozen=True)
class Actor:
    """A person, or a token acting for a person, a project or a client.

    With `project_id` set the actor sees that project only. `actions` caps what the person's role allows;
    it is the whole right of a project token. A client acts as itself (`client_id`) and sees no rows through the
    general door: what it may touch is asked for by its own id.
    """

    user: User | None = None
    token_id: uuid.UUID | None = None
    project_id: uuid.UUID | None = None
    client_id: uuid.UUID | None = None
    actions: frozenset[Action] = field(default_factory=lambda: frozenset(Action))
    is_operator: bool = False

    @property
    def is_anonymous(self) -> bool:
        return self.user is None and self.project_id is None and self.client_id is None

    @property
    def key(self) -> str:
        """A stable name of this actor, for idempotency keys, throttles and audit."""
        if self.client_id:
            return f"client:{self.client_id}"
        if self.user is not None:
            return f"user:{self.user.pk}"
        if self.is_operator:
            return "operator"
        return f"project:{self.project_id}" if self.project_id else "anonymous"

    @classmethod
    def of_user(cls, user: User | AnonymousUser) -> Actor:
        return ANONYMOUS if user.is_anonymous else cls(user=user)


ANONYMOUS = Actor(actions=frozenset())
# Whoever runs this Studio, at the command line of one of its machines: for the audit trail only, it opens no rows.
OPERATOR = Actor(actions=frozenset(), is_operator=True)


def actor_of(request: Any) -> Actor:
    """Who sent this HTTP request (page or REST), as the middleware or the token says."""
    return cast(Actor, getattr(request, "actor", ANONYMOUS))
