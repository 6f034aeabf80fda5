-- When an entry came first (0: then at_us tells it), and when it was asked last that its record be read again: how often the entry had come
-- then, which reading of the record the lake had, and why it cannot be read again (empty: it can).
ALTER TABLE quarantine ADD COLUMN first_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quarantine ADD COLUMN replayed_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quarantine ADD COLUMN replayed_attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quarantine ADD COLUMN replayed_observed_us INTEGER;
ALTER TABLE quarantine ADD COLUMN replay_refused TEXT NOT NULL DEFAULT '';
UPDATE quarantine SET first_us = at_us;
-- What is in quarantine of an id, whatever its project.
CREATE INDEX quarantine_id ON quarantine (document_id);
-- What is being read again.
CREATE INDEX quarantine_replayed ON quarantine (replayed_us) WHERE replayed_us > 0;
-- Why an id left; empty where that was not kept.
ALTER TABLE tombstone ADD COLUMN reason TEXT NOT NULL DEFAULT '';
