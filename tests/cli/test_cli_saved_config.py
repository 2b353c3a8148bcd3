"""The configuration that a run keeps runs it again, from its beginning."""

import yaml

from repblocks.cli.training_run import _write_config


def test_that_of_a_continued_run_starts_anew(tmp_path):
    settings = {"seed": 3, "ckpt_path": "run/checkpoints/last.ckpt", "output": "run"}
    _write_config(settings, tmp_path)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (saved["seed"], saved["ckpt_path"], saved["output"]) == (3, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
