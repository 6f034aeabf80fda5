-- What is in quarantine of a document.
CREATE INDEX quarantine_document ON quarantine (domain, document_id);
