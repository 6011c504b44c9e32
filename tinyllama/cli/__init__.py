"""The command line: a file parses, calls the public API and prints; no logic lives here."""
