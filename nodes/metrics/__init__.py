"""Figures for Prometheus: a process on the broker's host that answers `GET /metrics`.

Reading order: readings (what a status holds, as samples), catalogue (every metric), exporter (the
collector), __main__ (the process), page (the table and the dashboard).
"""
