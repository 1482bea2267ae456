from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("federation_sessions", "0006_engine")]

    operations = [
        migrations.AddField(
            model_name="assignment",
            name="sent_bytes",
            field=models.BigIntegerField(blank=True, help_text="what travelled of the update", null=True),
        ),
        migrations.AddField(
            model_name="assignment",
            name="encoding",
            field=models.CharField(blank=True, help_text="how it travelled; empty: as it is", max_length=12),
        ),
    ]
