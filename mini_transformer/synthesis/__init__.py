"""Texts written by an instruct model, to pre-train on."""
