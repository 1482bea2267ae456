from django.db import migrations, models
from django.db.models import Q

OPEN_ROUND = ("training", "closing", "reducing")
PAST_TRAINING = ("closing", "reducing")
LIVE_ASSIGNMENT = ("assigned", "delivered")


class Migration(migrations.Migration):
    dependencies = [("federation_sessions", "0007_sent_bytes")]

    operations = [
        migrations.AddField(
            model_name="round",
            name="buffered",
            field=models.BooleanField(
                default=False,
                help_text="asynchronous: takes whatever comes while it trains; its input model is settled as it closes",
            ),
        ),
        migrations.RemoveConstraint(model_name="round", name="round_one_open"),
        migrations.AddConstraint(
            model_name="round",
            constraint=models.UniqueConstraint(
                fields=["session"], condition=Q(status__in=OPEN_ROUND, buffered=False), name="round_one_open"
            ),
        ),
        migrations.AddConstraint(
            model_name="round",
            constraint=models.UniqueConstraint(
                fields=["session"], condition=Q(status="training"), name="round_one_training"
            ),
        ),
        migrations.AddConstraint(
            model_name="round",
            constraint=models.UniqueConstraint(
                fields=["session"], condition=Q(status__in=PAST_TRAINING), name="round_one_past_training"
            ),
        ),
        migrations.AddIndex(
            model_name="assignment",
            index=models.Index(
                fields=["round"], name="assignment_live", condition=Q(status__in=LIVE_ASSIGNMENT)
            ),
        ),
    ]
