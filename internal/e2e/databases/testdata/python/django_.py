import django
from django.conf import settings
from django.db import connection, models, transaction

from common import *

ME = "django"
settings.configure(INSTALLED_APPS=[], USE_TZ=True, DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "HOST": HOST, "PORT": PORT, "NAME": DATABASE, "USER": USER, "PASSWORD": PASSWORD}})
django.setup()


class Order(models.Model):
    id = models.IntegerField(primary_key=True)
    customer = models.TextField()
    placed = models.DateField()

    class Meta:
        app_label, db_table, managed = "shop", "orders", False


class Note(models.Model):
    pk = models.CompositePrimaryKey("client", "n")
    client = models.TextField()
    n = models.IntegerField()
    body = models.TextField()

    class Meta:
        app_label, db_table, managed = "shop", "notes", False


class Secret(models.Model):
    id = models.IntegerField(primary_key=True)
    value = models.TextField()

    class Meta:
        app_label, db_table, managed = "shop", "secrets", False


say("select", list(Order.objects.order_by("id").values_list("id", "customer", "placed")[:3]))
say("filter", Order.objects.filter(customer__icontains="a").exclude(id__in=[1, 2]).count())
say("aggregate", Order.objects.aggregate(models.Max("id"), models.Count("customer", distinct=True)))
say("dates", list(Order.objects.dates("placed", "month")))
Note.objects.filter(client=ME).delete()
Note.objects.bulk_create([Note(client=ME, n=n, body=f"body {n}") for n in range(5)])
try:
    with transaction.atomic():
        Note.objects.filter(client=ME).update(body="lost")
        with transaction.atomic():
            Note.objects.filter(client=ME, n=1).update(body="lost too")
        raise KeyError
except KeyError:
    pass
say("transaction", list(Note.objects.filter(client=ME).order_by("n").values_list("n", "body")))
try:
    list(Secret.objects.all())
except django.db.Error as e:
    say("refused", type(e).__name__, one_line(e))
say("after", Order.objects.count())
say("iterator", sum(1 for _ in Order.objects.iterator(chunk_size=7)))
say("tables", sorted(t.name for t in connection.introspection.get_table_list(connection.cursor())))
