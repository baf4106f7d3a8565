"""Rollouts in the forms of other trainers: `trl`, `verl` and `slime`; see docs/trainers.md.

Job: translate names, padding and grouping at the edge, and nowhere else.
Does not know: messages, sockets or how a rollout came about.
Invariants: importing an adapter imports numpy at most; a trainer's own packages are imported when
one of their classes is asked for. What is not trainable never gets a reward or a loss.
"""
