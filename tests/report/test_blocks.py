"""Blocks of a Markdown file that are written from results: the block is replaced, everything else stays."""

import pytest

from iclm.errors import ConfigurationError
from iclm.report.blocks import read_markdown, with_blocks

TEXTS = {"acre/accuracy": "| a |\n| b |\n", "paper": "| 0.8 |\n"}


def test_blocks_are_replaced_and_all_else_stays():
    text = "# T\n\n<!-- study: paper -->\nold\n<!-- /study -->\ntext <!-- study: acre/accuracy -->\n<!-- /study -->  \n\n end"
    assert with_blocks(text, TEXTS, "x.md") == (
        "# T\n\n<!-- study: paper -->\n| 0.8 |\n<!-- /study -->\n"
        "text <!-- study: acre/accuracy -->\n| a |\n| b |\n<!-- /study -->  \n\n end"
    )


def test_doing_it_again_changes_nothing():
    once = with_blocks("<!-- study: paper -->\n<!-- /study -->", TEXTS, "x.md")
    assert with_blocks(once, TEXTS, "x.md") == once


def test_line_ends_of_the_file_are_kept():
    text = "a\r\n<!-- study: acre/accuracy -->\r\n<!-- /study -->\r\nb\r\n"
    found = with_blocks(text, TEXTS, "x.md")
    assert found == "a\r\n<!-- study: acre/accuracy -->\r\n| a |\r\n| b |\r\n<!-- /study -->\r\nb\r\n"


def test_other_blocks_are_left_alone():
    text = "<!-- results: results/a.json -->\n0.5\n<!-- /results -->\n"
    assert with_blocks(text, TEXTS, "x.md") == text


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(
        ConfigurationError, match=r"x\.md: there is no table 'acre' in these results; there are acre/accuracy, paper"
    ):
        with_blocks("<!-- study: acre -->\n<!-- /study -->", TEXTS, "x.md")


@pytest.mark.parametrize(
    "text",
    [
        "<!-- study: paper -->\n",
        "<!-- /study -->\n",
        "<!-- study: paper --> <!-- /study -->\n",
        "<!-- study: paper -->\n<!-- study: paper -->\n<!-- /study -->\n",
        "<!-- study: paper -->\n<!-- /study -->\n<!-- /study -->\n",
        "<!-- study: paper\n<!-- /study -->\n",
        "<!-- study: paper -->\n<!-- study: paper -->\n<!-- /study -->\n<!-- /study -->\n",
    ],
)
def test_a_block_that_is_not_whole_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"x\.md: a study block is a line .* one of them is missing"):
        with_blocks(text, TEXTS, "x.md")


def test_a_file_without_a_block_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("no block")
    (tmp_path / "b.md").write_bytes(b"\xff<!-- study: paper -->")
    with pytest.raises(ConfigurationError, match="has no line"):
        read_markdown(tmp_path / "a.md")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_markdown(tmp_path / "b.md")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_markdown(tmp_path / "none.md")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_markdown(tmp_path)
