-- Ten changes as they are often written, for `lockkeeper analyze scripts/examples/migration.sql` to find fault
-- with. They need customers (id, name), orders (id, customer_id, state, total), items (id, order_id, sku) and an
-- index orders_state.

-- 1. A column without a default, or with a constant one, takes a moment, once the lock is had.
ALTER TABLE orders ADD COLUMN note text DEFAULT 'none';

-- 2. A default that differs by row rewrites the table.
ALTER TABLE customers ADD COLUMN joined timestamptz DEFAULT clock_timestamp();

-- 3. Nobody writes while the index is built.
CREATE INDEX orders_customer ON orders (customer_id);

-- 4. Somebody may; but it can't run in a transaction.
CREATE INDEX CONCURRENTLY orders_total ON orders (total);

-- 5. A foreign key locks both tables while every row is checked.
ALTER TABLE orders ADD CONSTRAINT orders_customer_fk FOREIGN KEY (customer_id) REFERENCES customers (id);

-- 6. Reads the whole table under the strongest lock.
ALTER TABLE items ALTER COLUMN sku SET NOT NULL;

-- 7. Checks no row that is there already …
ALTER TABLE items ADD CONSTRAINT items_sku CHECK (sku <> '') NOT VALID;

-- 8. … and this would hinder nobody, were it not in one transaction with the one before it.
ALTER TABLE items VALIDATE CONSTRAINT items_sku;

-- 9. Every row stays locked until the end.
UPDATE orders SET state = 'open' WHERE state IS NULL;

-- 10. Waits for every query of the table, and everybody waits for it.
DROP INDEX orders_state;
