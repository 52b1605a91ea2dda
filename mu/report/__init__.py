"""Reports: run directories go in, one self-contained HTML file comes out."""

from mu.report.html import write_report

__all__ = ["write_report"]
