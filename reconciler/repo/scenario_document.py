"""A Scenario as a whole file. Apart from the other kinds: `plan` need not import what only `test` and `validate` use."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from reconciler.model.desired import Metadata
from reconciler.repo.documents import Document
from reconciler.repo.scenario import ScenarioSpec


class ScenarioDocument(Document):
    """A given/then test of the fleet's policy, in tests/NAME.yaml."""

    model_config = ConfigDict(title="Scenario")

    kind: Literal["Scenario"] = Field(description="Kind of document")
    metadata: Metadata = Field(description="The name is a sentence: the rule that the scenario shows")
    spec: ScenarioSpec = Field(description="Given, and what is expected")
