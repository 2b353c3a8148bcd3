"""Paths on the command line are texts, whatever is in them."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from repblocks.cli.launching import _lenient


def read(argument):
    return OverridesParser.create().parse_override(_lenient(argument, {})).value()


@pytest.mark.parametrize("key", ["ckpt_path", "output", "init_from", "data.root", "model.weights"])
@pytest.mark.parametrize(
    "path",
    [
        *("run/step=8.ckpt", "a b/c.ckpt", "runs[1]/x", "[x]", "(x)/{y}", "f(x)", "it's", "a\\"),
        *("2024", "1e3", "true", "a:b", "C:\\x=1\\", "lr=${seed}", "plain/last.ckpt", "a#b", "é=ß"),
    ],
)
def test_a_path_is_taken_as_it_is(key, path):
    assert read(f"{key}={path}") == path
    assert read(f"++{key}={path}") == path


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert read("ckpt_path=~/runs/x=1.ckpt") == "/home/me/runs/x=1.ckpt"
    assert Path(read("output=~/runs")) == Path("/home/me/runs")


def test_what_the_grammar_says_stays():
    assert read("output=null") is None
    assert read("output='a,b'") == "a,b"
    assert read("ckpt_path=a,b").list == ["a", "b"]
    assert read("seed=3") == 3
