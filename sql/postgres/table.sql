-- The outbox table: Debezium's default layout and order, then walpost's own columns.
-- A line whose column is not mapped is left out.
CREATE TABLE IF NOT EXISTS :"schema".:"table" (
    :"id" uuid PRIMARY KEY,
    :"aggregate_type" varchar(255) NOT NULL,
    :"aggregate_id" varchar(255) NOT NULL,
    :"type" varchar(255) NOT NULL,
    :"payload" jsonb,
    :"headers" jsonb,
    :"topic" text,
    :"created_at" timestamptz NOT NULL DEFAULT now()
);
