"""A federation's events for people: a live display, a final table, a report in HTML."""

from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.html import render_report, require_plotly, write_report
from llmos_stream.reporting.terminal import final_table, line, render

__all__ = [
    "History",
    "final_table",
    "line",
    "render",
    "render_report",
    "require_plotly",
    "write_report",
]
