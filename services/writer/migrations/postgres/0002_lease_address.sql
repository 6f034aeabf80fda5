-- Where others reach the holder of the lease ('' when it is not configured), and since when it has held the lease without a break.
ALTER TABLE writer_lease ADD COLUMN address TEXT NOT NULL DEFAULT '';
ALTER TABLE writer_lease ADD COLUMN acquired_us BIGINT NOT NULL DEFAULT 0;
