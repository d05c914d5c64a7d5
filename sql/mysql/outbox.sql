-- The outbox table: Debezium's default layout and order, then walpost's own columns. The id is a
-- UUID in its 36 characters; binary(16) is read as well.
-- A line whose column is not mapped is left out.
CREATE TABLE IF NOT EXISTS :"schema".:"table" (
    :"id" char(36) CHARACTER SET ascii NOT NULL PRIMARY KEY,
    :"aggregate_type" varchar(255) NOT NULL,
    :"aggregate_id" varchar(255) NOT NULL,
    :"type" varchar(255) NOT NULL,
    :"payload" json,
    :"headers" json,
    :"topic" varchar(255),
    :"created_at" timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4;
