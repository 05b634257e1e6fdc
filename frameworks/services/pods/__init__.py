"""Pods: Marathon's pod definitions, what becomes of them, and their REST API."""
