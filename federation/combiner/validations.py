"""Validations on their way in, whatever dialect they came by."""

from __future__ import annotations

import math
import uuid

from federation.combiner.connection import Identity
from federation.combiner.hub import Hub
from federation.combiner.intake import Receipt
from federation.combiner.reported import MAX_VALIDATION_BYTES, json_object
from federation.combiner.threads import in_rows
from federation.sessions import commands
from foundation.errors import StudioError

MOST_EXAMPLES = 1e12


async def take_validation(
    hub: Hub, who: Identity, task_id: uuid.UUID, text: str, num_examples: float = 0.0
) -> Receipt:
    """What a client measured on the model of one of its tasks, as JSON. A second copy gets the same answer. Without a
    sensible `num_examples` it counts by as many as the client trained on."""
    try:
        data = json_object(text, "A validation", MAX_VALIDATION_BYTES)
    except StudioError as error:
        await in_rows(
            commands.reject_measured, client_id=who.client_id, task_id=task_id, reason=error.message
        )
        receipt = Receipt("rejected", error.message)
    else:
        weight = num_examples if math.isfinite(num_examples) and 0 < num_examples <= MOST_EXAMPLES else 0.0
        verdict = await in_rows(
            commands.accept_measured, client_id=who.client_id, task_id=task_id, data=data, weight=weight
        )
        receipt = Receipt("accepted" if verdict.accepted else "refused", verdict.reason)
    hub.done(who.client_id, task_id)
    return receipt
