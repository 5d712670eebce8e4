"""GitOps reconciler for fleets of edge servers. The layers and who may import whom: docs/explanation/architecture.md."""

__version__ = "0.1.0"
