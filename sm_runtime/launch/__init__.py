"""The ways to run a script: what each host starts, as data."""
