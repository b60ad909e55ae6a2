"""Table of numbers: by columns and by rows."""

from decomp.pipelines.reporting.tables import Table


def test_a_table_is_read_by_columns_and_by_rows():
    table = Table("t", ("a", "b"), [(1, 2), (3, None)])
    assert table.column("b") == [2, None] and table.dicts() == [{"a": 1, "b": 2}, {"a": 3, "b": None}]
