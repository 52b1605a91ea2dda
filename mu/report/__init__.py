"""Reports: one self-contained HTML file from one or more run folders."""

from mu.report.html import write_report

__all__ = ["write_report"]
