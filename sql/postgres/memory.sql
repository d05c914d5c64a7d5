-- What the relay has confirmed, one row a slot: by it a slot that was made again or moved by
-- somebody else is noticed, and a crash of the server repeats less. Written seldom; never published.
CREATE TABLE IF NOT EXISTS :"schema".:"memory" (
    slot text PRIMARY KEY,
    system_identifier text NOT NULL,
    timeline bigint NOT NULL,
    confirmed pg_lsn NOT NULL,
    bound pg_lsn NOT NULL,
    is_clean boolean NOT NULL,
    decoded bigint,
    writes bigint NOT NULL,
    holder text NOT NULL,
    updated_at timestamptz NOT NULL
);
