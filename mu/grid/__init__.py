"""Many runs from one plan: what to run, where it runs, and what came of it.

plan.py      a YAML file -> cells, each one search and its measurements
folder.py    the grid's folder: a run for each cell, and what is known of each
cell.py      one cell: search, measure, report
machine.py   how many cells fit this machine at once
pool.py      worker processes of this machine
cluster.py   the same on a Ray cluster
running.py   all that has no result yet
outcome.py   what was erased and kept, by cell
table.py     the table, as text, CSV, JSON, Markdown and LaTeX
page.py      the page, with the Pareto plots
tuning.py    the search for a method's settings
"""
