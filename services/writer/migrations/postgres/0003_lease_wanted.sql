-- When another process asked for the lease last while it was held (0: nobody has), so that a holder that cannot write any more gives way.
ALTER TABLE writer_lease ADD COLUMN wanted_us BIGINT NOT NULL DEFAULT 0;
