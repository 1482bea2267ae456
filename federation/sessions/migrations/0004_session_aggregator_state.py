from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("federation_sessions", "0003_share_silent_since")]

    operations = [
        migrations.AddField(
            model_name="session",
            name="aggregator_state",
            field=models.CharField(
                blank=True,
                help_text="where storage has what the aggregator knows of earlier rounds",
                max_length=200,
            ),
        ),
    ]
