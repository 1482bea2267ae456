from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("clients_app", "0004_placement")]

    operations = [
        migrations.AddIndex(
            model_name="client",
            index=models.Index(
                fields=["connected_at"], name="client_came", condition=Q(connection_id__gt="")
            ),
        ),
    ]
