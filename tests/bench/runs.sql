-- The limit for runs of an empty job: what each writes and locks, and nothing else (pgbench -M prepared).
-- Rows 1, 2, … of lockkeeper.run are due; the sequence bench_runs counts them.
SELECT nextval('bench_runs') AS id \gset
UPDATE lockkeeper.run SET state = 'claimed', claimed_at = clock_timestamp() WHERE id = :id AND state = 'due';
SELECT pg_try_advisory_lock(1, :id);
SELECT pg_try_advisory_lock(2, :id);
WITH f AS (INSERT INTO lockkeeper.fence AS f (job, value) SELECT job, 1 FROM lockkeeper.run WHERE id = :id ON CONFLICT (job) DO UPDATE SET value = f.value + 1 RETURNING f.value) UPDATE lockkeeper.run SET state = 'running', started_at = clock_timestamp(), guards = '{a}', fence = (SELECT value FROM f) WHERE id = :id AND state = 'claimed';
UPDATE lockkeeper.run SET state = 'succeeded', ended_at = clock_timestamp(), ran = 0 WHERE id = :id AND state = 'running';
SELECT pg_advisory_unlock(2, :id);
SELECT pg_advisory_unlock(1, :id);
