-- How full the shared lock table is. When it is full, statements fail with "out of shared memory", in any
-- database of the server. Its size is a lower bound: PostgreSQL goes on in spare shared memory where it has
-- some.
local lock = require "lockkeeper"

local FULL, CRITICAL = 0.7, 0.9

lock.audit("lock-table", {
  every = "1m",
  description = "The server's lock table fills: when it is full, statements fail, whatever they do.",
  advice = "Touch fewer tables (or partitions) in a transaction, or raise max_locks_per_transaction, which "
    .. "takes a restart.",
  find = function(a)
    local server = a:server()
    local settings, count = server and server.settings, server and server.lock_count
    if not settings or not count or not settings.max_locks_per_transaction then
      return nil -- a snapshot that was saved without facts of the server
    end
    local backends = settings.max_connections + settings.max_worker_processes + settings.max_wal_senders
      + (settings.autovacuum_worker_slots or settings.autovacuum_max_workers) + 1
    local room = settings.max_locks_per_transaction * (backends + settings.max_prepared_transactions)
    local fill = count / room
    return fill >= FULL and {
      subject = "lock table", severity = fill >= CRITICAL and "critical" or "warning",
      message = ("%d locks are %.0f%% of the %d that the lock table has room for"):format(count, 100 * fill,
        room),
    } or nil
  end,
})
