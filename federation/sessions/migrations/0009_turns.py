from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("federation_sessions", "0008_asynchronous_rounds")]

    operations = [
        migrations.AddField(
            model_name="session",
            name="sought_at",
            field=models.DateTimeField(
                null=True,
                blank=True,
                help_text="when it last looked for clients to ask; empty: it wants none",
            ),
        ),
        migrations.AddIndex(
            model_name="session",
            index=models.Index(fields=["project"], name="session_running", condition=Q(status="running")),
        ),
        migrations.AddField(
            model_name="round",
            name="reduce_asked_at",
            field=models.DateTimeField(
                null=True,
                blank=True,
                help_text="when workers were last asked to reduce it; empty: its turn is yet to come",
            ),
        ),
        migrations.AddIndex(
            model_name="round",
            index=models.Index(fields=["project"], name="round_reducing", condition=Q(status="reducing")),
        ),
    ]
