-- The slot: the server keeps its log from here on until walpost has confirmed it. Run this in a
-- transaction of its own (not with psql --single-transaction). It waits for older transactions.
DO $walpost$
BEGIN
    PERFORM set_config('lock_timeout', '5s', true);
    IF NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = :'slot') THEN
        -- Rows older than the slot are not in what it reads.
        IF NOT :'skip_existing'::boolean AND EXISTS (SELECT FROM :"schema".:"table") THEN
            RAISE EXCEPTION 'the table has rows that would never be published'
                USING HINT = 'Empty it, or run walpost init with --skip-existing.';
        END IF;
        PERFORM pg_create_logical_replication_slot(:'slot', 'pgoutput');
    END IF;
END
$walpost$;
