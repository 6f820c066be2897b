"""Tuning: better schedules than the default's, searched within a budget, kept, and picked up."""
