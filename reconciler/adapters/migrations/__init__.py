"""Alembic's scripts of the store's schema, shipped with the program and run when a store is opened."""
