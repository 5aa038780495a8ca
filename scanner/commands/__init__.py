"""One file for each command: its options, and what it calls. torch is imported when it runs."""
