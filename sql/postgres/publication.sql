-- Inserts only: deleting old rows sends nothing. It must be there before the slot is made, since
-- PostgreSQL reads the catalog as it was when a row was written.
DO $walpost$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = :'publication') THEN
        CREATE PUBLICATION :"publication" FOR TABLE :"schema".:"table"
            WITH (publish = 'insert', publish_via_partition_root = true);
    END IF;
END
$walpost$;
