"""The HTTP side: blueprints that turn requests into jobs and outcomes into answers."""
