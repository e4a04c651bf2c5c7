"""The studies behind RESULTS.md: a YAML plan and a module each, run by ``python -m examples.studies run NAME``."""
