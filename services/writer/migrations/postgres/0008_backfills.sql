-- details: what exactly is asked for, as JSON; empty where the target says it all. paused: whether it is to rest. A new state: paused.
-- rate_milli: units in a thousand seconds, lately.
ALTER TABLE lake_operation ADD COLUMN details TEXT NOT NULL DEFAULT '';
ALTER TABLE lake_operation ADD COLUMN paused BIGINT NOT NULL DEFAULT 0;
ALTER TABLE lake_operation ADD COLUMN rate_milli BIGINT;

-- What a backfill reads by itself: one of HQ's databases, or a portion of ids. reached: the primary key up to which HQ's table was read.
CREATE TABLE lake_backfill_part (
    operation_id TEXT NOT NULL,
    part         TEXT NOT NULL,
    number       BIGINT NOT NULL,
    estimate     BIGINT NOT NULL,
    reached      BIGINT NOT NULL,
    documents    BIGINT NOT NULL DEFAULT 0,
    finished     BIGINT NOT NULL DEFAULT 0,
    refused      TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (operation_id, part)
);

-- What fetchers were heard to take, entry by entry of their allow-lists, and since when.
CREATE TABLE lake_taken (
    list     TEXT NOT NULL,
    entry    TEXT NOT NULL,
    since_us BIGINT NOT NULL,
    PRIMARY KEY (list, entry)
);
