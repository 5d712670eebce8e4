"""The HTTP service: what devices report and receive, and what operators read. Stateless beside the store."""
