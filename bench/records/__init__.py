"""What is written down: nouns, settings, files, records, artefacts and tables."""
