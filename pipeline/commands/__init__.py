"""What each command does, between the options in cli.py and the modules that do the work."""
