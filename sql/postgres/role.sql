-- The role that the relay logs in as: it may replicate, read the outbox and keep its own memory, and
-- nothing else.
DO $walpost$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') THEN
        CREATE ROLE :"role" LOGIN REPLICATION;
        -- A verifier made by walpost, where it was given a password: the password itself stands
        -- in no statement and in no log.
        ALTER ROLE :"role" PASSWORD :'verifier';
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role');
END
$walpost$;
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON :"schema".:"table" TO :"role";
GRANT SELECT, INSERT, UPDATE ON :"schema".:"memory" TO :"role";
