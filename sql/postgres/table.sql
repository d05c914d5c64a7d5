-- The outbox table: Debezium's default layout, with walpost's headers, topic and created_at.
-- A line whose column is not mapped is left out.
CREATE TABLE IF NOT EXISTS :"schema".:"table" (
    :"id"             uuid PRIMARY KEY,
    :"aggregate_type" varchar(255) NOT NULL,
    :"aggregate_id"   varchar(255) NOT NULL,
    :"type"           varchar(255) NOT NULL,
    :"headers"        jsonb,
    :"topic"          text,
    :"created_at"     timestamptz NOT NULL DEFAULT now(),
    :"payload"        jsonb
);
