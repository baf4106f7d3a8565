"""Sandboxes: where what a model wrote runs.

A *provider* (bubblewrap, apptainer, process) starts sandboxes. On each host one process, the
*keeper* (`python -m nodes.sandboxes`), owns every sandbox of the run: it keeps warm ones, gives
them to attempts, and removes what nobody owns any more. Handlers ask for one through their context;
what they get is a record, and they enter by themselves: no output and no keystroke passes a third
process.

Reading order: contract (what a sandbox is), enter (how a program gets inside; a script of its own),
entrance (the same from asyncio), records, places, inside (the contract, from a record), ground,
isolating, bubblewrap with launch, apptainer, process (the providers), holdings (who owns what, as
pure rules), usage and watch (what sandboxes take), keeper, link (how a host asks the keeper),
__main__.
"""
