"""One file a source of records; `ecgmeta.data.load` documents the protocol they share."""
