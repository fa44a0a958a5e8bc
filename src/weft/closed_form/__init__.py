"""Schedules written down without running anything."""
