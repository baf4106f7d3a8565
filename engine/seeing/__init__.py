"""Seeing a cluster: what the broker's status means for people.

Reading order: rates (two statuses into figures a second), findings (what is wrong), frame (a
picture for a terminal), top and doctor (the commands).
"""
