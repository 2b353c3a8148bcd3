"""One real artifact that several tests look at: exporting takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployment_nets import DESCRIPTION, batches, images, trained_net

from repblocks.deployment.pipeline import deploy
from repblocks.deployment.report import DeploymentReport
from repblocks.folding.switch import fold_blocks


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DeploymentReport]:
    """The folder and report of one deployment in all formats."""
    output = tmp_path_factory.mktemp("deployed") / "new" / "artifact"
    model = trained_net()
    folded, blocks = fold_blocks(model)
    report = deploy(
        model.train(),
        folded,
        output=output,
        description=DESCRIPTION,
        example_input=images(),
        validation=batches(),
        blocks=blocks,
    )
    return output, report
