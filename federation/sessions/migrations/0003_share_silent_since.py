from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("federation_sessions", "0002_initial")]

    operations = [
        migrations.AddField(
            model_name="combinershare",
            name="silent_since",
            field=models.DateTimeField(
                blank=True, help_text="when the engine first saw the combiner's lease out", null=True
            ),
        ),
    ]
