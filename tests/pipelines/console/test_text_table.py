"""Tables as text and as HTML."""

from decomp.pipelines.console.text_table import html_table, text_table


def test_tables_line_up_and_escape_what_they_hold():
    lines = text_table([("name", "n"), ("a", "10"), ("long name", "7")]).split("\n")
    assert lines == ["name        n", "a          10", "long name   7"]
    assert "<b>" not in html_table([("x",), ("<b>&",)]) and "&lt;b&gt;&amp;" in html_table([("x",), ("<b>&",)])
