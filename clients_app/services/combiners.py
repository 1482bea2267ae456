"""Taking a combiner out of service while sessions run, and back in."""

from __future__ import annotations

from django.db import transaction

from clients_app.choices import Draining
from clients_app.combiner_events import tell_projects
from clients_app.models import Combiner
from foundation.errors import StudioError, forbidden
from projects import audit
from projects.actors import Actor
from projects.choices import Action


def check_operator(actor: Actor) -> None:
    """Combiners serve all projects, so no role in one lets them be taken away. Raises StudioError 403 unless this is
    staff that may change combiners, as on the admin site, by cookie or with a token of theirs that may do all."""
    user = actor.user
    everything = actor.project_id is None and actor.actions >= frozenset(Action)
    if user is None or not everything or not (user.is_staff and user.has_perm("clients_app.change_combiner")):
        raise forbidden("Only operators of this Studio may see to combiners, with a token of scope admin.")


def drain_combiner(name: str, *, actor: Actor, stopping: bool = False) -> Combiner:
    """It gets no new clients and gives its own away, a few at a time; what it accepted it finishes. Holds over
    restarts until `undrain_combiner`; with `stopping`, until it starts again. Whoever may call this is the operator.
    Raises StudioError 404."""
    with transaction.atomic():
        row = _locked(name)
        state = Draining.STOPPING if stopping else Draining.ASKED
        if row.draining == state or (stopping and row.draining):
            return row
        row.draining = state
        row.save(update_fields=["draining"])
        if not stopping:  # a process that ends is an event, no deed of a person
            audit.record(actor, "combiner.drain", project_id=None, target=row.name)
        tell_projects(
            row, "combiner.draining", f"Combiner {row.name} is being drained: its clients go to others."
        )
    return row


def undrain_combiner(name: str, *, actor: Actor) -> Combiner:
    """It takes clients again. Raises StudioError 404."""
    with transaction.atomic():
        row = _locked(name)
        if row.draining:
            row.draining = Draining.NO
            row.save(update_fields=["draining"])
            audit.record(actor, "combiner.undrain", project_id=None, target=row.name)
            tell_projects(row, "combiner.taking", f"Combiner {row.name} takes clients again.")
    return row


def _locked(name: str) -> Combiner:
    row = Combiner.objects.select_for_update().filter(name=name).first()
    if row is None:
        raise StudioError("not_found", f"There is no combiner named {name}.", 404)
    return row
