"""One authenticated connection between each host of a distributed job and its leader."""
