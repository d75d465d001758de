"""What a server serves: the checks before anything is started, then the workers."""
