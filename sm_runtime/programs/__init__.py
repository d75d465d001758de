"""Programs that run in processes of their own, where others start them or in the script's place."""
