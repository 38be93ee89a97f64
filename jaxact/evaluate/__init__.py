"""Metrics, cost counting, report."""
