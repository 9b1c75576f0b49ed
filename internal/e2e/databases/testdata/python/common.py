"""The steps that each client takes, and how it prints them: a line "STEP: RESULT" each.

A line that begins with "refused" is of a statement that is not granted. All
others must be the same directly and through the sidecar.
"""
import os

HOST, PORT, DATABASE = os.environ["PGHOST"], int(os.environ["PGPORT"]), os.environ["PGDATABASE"]
USER, PASSWORD = os.environ["PGUSER"], os.environ["PGPASSWORD"]

FIRST = "SELECT id, customer, amount FROM orders ORDER BY id LIMIT 3"
SECRETS = "SELECT value FROM secrets"
COUNT = "SELECT count(*) FROM orders"
NOTES = "SELECT n, body FROM notes WHERE client = '{}' ORDER BY n"


def say(step, *result):
    print(f"{step}:", *result, flush=True)


def one_line(text):
    return " ".join(str(text).split())
