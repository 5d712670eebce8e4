"""Fleet repo bytes → documents with positions → model. Pure: git and files are handed in."""
