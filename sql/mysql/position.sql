-- Where relays keep their place in the binlog, one row for each relay's name, and who may move it:
-- a lease, whose epoch rises with each taker. All times are UTC, by this server's clock.
CREATE TABLE IF NOT EXISTS :"position_schema".:"position_table" (
    name varchar(64) NOT NULL PRIMARY KEY,
    -- The place, NULL until a first one is known.
    flavor varchar(16),
    server_uuid varchar(64),
    gtid_set longtext,
    file varchar(512),
    position bigint unsigned,
    -- Whether rows that the outbox had at the first start are still to be confirmed.
    initial_pending boolean NOT NULL DEFAULT FALSE,
    -- Behind which of those rows, where some of them are confirmed already.
    initial_after longtext,
    -- Who may move it. An empty holder has given it back.
    epoch bigint unsigned NOT NULL,
    holder varchar(255) NOT NULL,
    lease_until datetime(6) NOT NULL,
    -- When the place was last written.
    updated_at datetime(6)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
