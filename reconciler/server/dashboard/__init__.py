"""What browsers are shown: the shell of every page, its templates and its static files."""
