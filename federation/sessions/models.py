"""Sessions, rounds, assignments and combiner shares: the truth of every training."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from federation.sessions.choices import (
    LIVE_ASSIGNMENT,
    LIVE_ORDER,
    OPEN_ROUND,
    PAST_TRAINING,
    AssignmentKind,
    AssignmentStatus,
    CommandKind,
    OrderStatus,
    RoundStatus,
    SessionStatus,
    ShareStatus,
)
from foundation.ids import uuid7
from projects.scoping import ScopedQuerySet


class Session(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="sessions")
    name = models.CharField(max_length=120)
    status = models.CharField(max_length=10, choices=SessionStatus.choices, default=SessionStatus.CREATED)
    config = models.JSONField(help_text="see federation.sessions.config.SessionConfig")
    package = models.ForeignKey(
        "federation_models.ComputePackage", models.RESTRICT, null=True, blank=True, related_name="sessions"
    )
    seed_model = models.ForeignKey("federation_models.Model", models.RESTRICT, related_name="+")
    current_model = models.ForeignKey("federation_models.Model", models.RESTRICT, related_name="+")
    aggregator_state = models.CharField(
        max_length=200, blank=True, help_text="where storage has what the aggregator knows of earlier rounds"
    )
    rounds_done = models.PositiveIntegerField(default=0)
    rounds_wanted = models.PositiveIntegerField()
    failed_in_row = models.PositiveIntegerField(default=0)
    stop_asked = models.BooleanField(default=False)
    look_at = models.DateTimeField(null=True, blank=True, help_text="the next moment that matters")
    waiting_for = models.CharField(max_length=300, blank=True)
    waiting_until = models.DateTimeField(null=True, blank=True)
    sought_at = models.DateTimeField(
        null=True, blank=True, help_text="when it last looked for clients to ask; empty: it wants none"
    )
    reason = models.CharField(max_length=500, blank=True, help_text="why it ended")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["look_at"], name="session_due", condition=Q(status="running")),
            models.Index(fields=["project"], name="session_running", condition=Q(status="running")),
        ]

    def __str__(self) -> str:
        return self.name


class Round(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="rounds")
    session = models.ForeignKey(Session, models.CASCADE, related_name="rounds")
    number = models.PositiveIntegerField(help_text="from 1")
    attempt = models.PositiveIntegerField(default=1)
    status = models.CharField(max_length=10, choices=RoundStatus.choices, default=RoundStatus.TRAINING)
    goal = models.PositiveIntegerField(help_text="updates after which the round need not wait for the others")
    min_updates = models.PositiveIntegerField()
    buffered = models.BooleanField(
        default=False,
        help_text="asynchronous: takes whatever comes while it trains; its input model is settled as it closes",
    )
    input_model = models.ForeignKey("federation_models.Model", models.RESTRICT, related_name="+")
    output_model = models.ForeignKey(
        "federation_models.Model", models.SET_NULL, null=True, blank=True, related_name="made_by"
    )
    deadline = models.DateTimeField()
    created_at = models.DateTimeField(default=timezone.now)
    closing_at = models.DateTimeField(null=True, blank=True)
    reducing_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    reason = models.CharField(max_length=500, blank=True, help_text="why it ended")
    timings = models.JSONField(default=dict, blank=True)
    plan = models.JSONField(
        default=dict,
        blank=True,
        help_text="what was settled as it opened: how clients were chosen, the clip norm",
    )
    epsilon = models.FloatField(
        null=True, blank=True, help_text="privacy spent by the session up to this round"
    )
    reduce_asked_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text="when workers were last asked to reduce it; empty: its turn is yet to come",
    )
    reduce_owner = models.UUIDField(null=True, blank=True)
    reduce_until = models.DateTimeField(null=True, blank=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["session", "number", "attempt"], name="round_once"),
            models.UniqueConstraint(
                fields=["session"], condition=Q(status__in=OPEN_ROUND, buffered=False), name="round_one_open"
            ),
            # asynchronous: one that trains, and before it one that becomes a model
            models.UniqueConstraint(
                fields=["session"], condition=Q(status=RoundStatus.TRAINING), name="round_one_training"
            ),
            models.UniqueConstraint(
                fields=["session"], condition=Q(status__in=PAST_TRAINING), name="round_one_past_training"
            ),
        ]
        indexes = [
            models.Index(fields=["project"], name="round_reducing", condition=Q(status=RoundStatus.REDUCING)),
        ]

    def __str__(self) -> str:
        return f"round {self.number} of {self.session}"


class CombinerShare(models.Model):
    """What one combiner accepted in one round, and the partial it made of it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="shares")
    round = models.ForeignKey(Round, models.CASCADE, related_name="shares")
    combiner = models.ForeignKey("clients_app.Combiner", models.PROTECT, related_name="shares")
    status = models.CharField(max_length=10, choices=ShareStatus.choices, default=ShareStatus.OPEN)
    weight = models.FloatField(default=0.0, help_text="summed weights of its updates in the fold")
    collected = models.BooleanField(
        default=False, help_text="its updates are in storage as they came; there is no partial"
    )
    updates = models.PositiveIntegerField(default=0)
    partial_key = models.CharField(max_length=200, blank=True)
    partial_sha256 = models.CharField(max_length=64, blank=True)
    is_model = models.BooleanField(
        default=False, help_text="the only share: the partial has the model's dtypes"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    reason = models.CharField(max_length=300, blank=True)
    silent_since = models.DateTimeField(
        null=True, blank=True, help_text="when the engine first saw the combiner's lease out"
    )

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["round", "combiner"], condition=~Q(status="abandoned"), name="share_once"
            )
        ]


class Assignment(models.Model):
    """A lease on one model for one client and round."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="assignments")
    round = models.ForeignKey(Round, models.CASCADE, related_name="assignments")
    client = models.ForeignKey("clients_app.Client", models.CASCADE, related_name="assignments")
    model = models.ForeignKey("federation_models.Model", models.RESTRICT, related_name="+")
    kind = models.CharField(max_length=10, choices=AssignmentKind.choices)
    share = models.ForeignKey(
        CombinerShare, models.SET_NULL, null=True, blank=True, related_name="assignments"
    )
    status = models.CharField(
        max_length=10, choices=AssignmentStatus.choices, default=AssignmentStatus.ASSIGNED
    )
    deadline = models.DateTimeField()
    created_at = models.DateTimeField(auto_now_add=True)
    delivered_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    progress = models.FloatField(null=True, blank=True, help_text="0 to 1, as the client says")
    spool_name = models.CharField(max_length=64, blank=True)
    sha256 = models.CharField(max_length=64, blank=True)
    size_bytes = models.BigIntegerField(null=True, blank=True)
    sent_bytes = models.BigIntegerField(null=True, blank=True, help_text="what travelled of the update")
    encoding = models.CharField(max_length=12, blank=True, help_text="how it travelled; empty: as it is")
    num_examples = models.FloatField(null=True, blank=True)
    update_norm = models.FloatField(null=True, blank=True, help_text="L2 norm of the update's floats")
    delta_norm = models.FloatField(
        null=True,
        blank=True,
        help_text="L2 norm of what it changes in the model it answers; where it is needed",
    )
    weight = models.FloatField(null=True, blank=True, help_text="its weight in the fold")
    staleness = models.PositiveIntegerField(default=0, help_text="rounds since the model that it answers")
    update_key = models.CharField(
        max_length=200, blank=True, help_text="where storage has it, if it was collected"
    )
    why = models.CharField(max_length=200, blank=True, help_text="why this client was chosen")
    metadata = models.JSONField(default=dict, blank=True)
    error = models.CharField(max_length=1000, blank=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["round", "client", "kind"],
                condition=Q(status__in=LIVE_ASSIGNMENT),
                name="assignment_one_live",
            )
        ]
        indexes = [
            models.Index(fields=["client"], name="assignment_owed", condition=Q(status__in=LIVE_ASSIGNMENT)),
            models.Index(fields=["round"], name="assignment_live", condition=Q(status__in=LIVE_ASSIGNMENT)),
        ]


class SelectionScore(models.Model):
    """What guided selection knows of a client in a session."""

    session = models.ForeignKey(Session, models.CASCADE, related_name="scores")
    client = models.ForeignKey("clients_app.Client", models.CASCADE, related_name="+")
    utility = models.FloatField(null=True, blank=True, help_text="statistical utility; empty: never tried")
    duration_s = models.FloatField(null=True, blank=True, help_text="from delivery to acceptance")
    last_round = models.PositiveIntegerField(default=0)
    times = models.PositiveIntegerField(default=0, help_text="how often it was chosen")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["session", "client"], name="score_once")]


class ReductionPart(models.Model):
    """A range of a large reduction, which any worker may take. Lives as long as the attempt that wrote it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    round = models.ForeignKey(Round, models.CASCADE, related_name="parts")
    owner = models.UUIDField(help_text="the attempt, as in Round.reduce_owner")
    phase = models.CharField(max_length=20)
    begin = models.BigIntegerField(help_text="first element")
    end = models.BigIntegerField()
    worker = models.UUIDField(null=True, blank=True)
    until = models.DateTimeField(null=True, blank=True, help_text="whoever works on it has so long")
    key = models.CharField(
        max_length=200, blank=True, help_text="where storage has the result; empty: not done"
    )

    class Meta:
        constraints = [models.UniqueConstraint(fields=["owner", "phase", "begin"], name="part_once")]


class Command(models.Model):
    """Something that clients are asked to do outside any round: one order for each of them."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="commands")
    kind = models.CharField(max_length=10, choices=CommandKind.choices)
    name = models.CharField(max_length=120, blank=True, help_text="of a custom command, without its prefix")
    model = models.ForeignKey(
        "federation_models.Model", models.RESTRICT, null=True, blank=True, related_name="+"
    )
    parameters = models.JSONField(default=dict, blank=True)
    deadline = models.DateTimeField()
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.name or self.kind


class Order(models.Model):
    """A command for one client, and what came of it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="orders")
    command = models.ForeignKey(Command, models.CASCADE, related_name="orders")
    client = models.ForeignKey("clients_app.Client", models.CASCADE, related_name="orders")
    status = models.CharField(max_length=12, choices=OrderStatus.choices, default=OrderStatus.PENDING)
    response = models.JSONField(null=True, blank=True)
    reason = models.CharField(max_length=1000, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["command", "client"], name="order_once")]
        indexes = [models.Index(fields=["client"], name="order_owed", condition=Q(status__in=LIVE_ORDER))]

    def __str__(self) -> str:
        return f"{self.command} by {self.client}"
