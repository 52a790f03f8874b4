"""What pairs.lua does, by Python: pairs.py SECONDS MODE HOW

MODE: try, timed or once. HOW: psycopg2, psycopg (3), django (the statements of django-pglock, through
Django's cursor as it sends them), pglock (django-pglock itself).
"""
import os
import sys
import time

seconds, mode, how = float(sys.argv[1]), sys.argv[2], sys.argv[3]
URL = os.environ["DATABASE_URL"]


def statements():
    """A function that runs one statement and reads its value."""
    if how == "psycopg2":
        import psycopg2

        connection = psycopg2.connect(URL)
        connection.autocommit = True
    elif how == "psycopg":
        import psycopg

        connection = psycopg.connect(URL, autocommit=True)
    else:
        from django.conf import settings

        query = dict(part.split("=") for part in URL.split("?")[1].split("&"))
        settings.configure(
            INSTALLED_APPS=["pglock"] if how == "pglock" else [],
            DATABASES={
                "default": {
                    "ENGINE": "django.db.backends.postgresql",
                    "NAME": "postgres",
                    "USER": "postgres",
                    "HOST": query["host"],
                    "PORT": query["port"],
                }
            },
        )
        import django

        django.setup()
        from django.db import connection

    def run(sql, parameters=None):
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone()[0] if cursor.description else None

    return run


run = statements()


def pair_try():
    run("SELECT pg_try_advisory_lock(%s)", (42,))
    run("SELECT pg_advisory_unlock(%s)", (42,))


def pair_timed():
    run("SELECT set_config('lock_timeout', %s, false)", ("5000",))
    run("SELECT pg_advisory_lock(%s)", (42,))
    run("SELECT set_config('lock_timeout', %s, false)", ("0",))
    run("SELECT pg_advisory_unlock(%s)", (42,))


if how == "pglock":
    import pglock

    def pair():
        with pglock.advisory("bench", timeout=0 if mode == "try" else 5):
            pass

else:
    pair = pair_timed if mode == "timed" else pair_try

if mode == "once":
    pair()
    sys.exit()
pid = run("SELECT pg_backend_pid()")


def backend_time():
    try:
        with open("/proc/%d/schedstat" % pid) as file:
            return int(file.read().split()[0]) / 1e9
    except OSError:
        return 0


# The median of batches, as windows.lua has it.
BATCH = 50
times, start, cpu, backend = [], time.monotonic(), time.process_time(), backend_time()
last = start
while last - start < seconds:
    for _ in range(BATCH):
        pair()
    now = time.monotonic()
    times.append(now - last)
    last = now
cpu = time.process_time() - cpu
backend = backend_time() - backend
each = 1e6 / (len(times) * BATCH)
print("%.1f %.3f %.3f" % (BATCH / sorted(times)[len(times) // 2], cpu * each, (cpu + backend) * each))
