"""Tools for agents: bash, ipython, editor, search, submit, think.

Job: turn a sandbox into `nodes.agent.Tool`s. Does not know: tasks, models or sandbox providers.
"""
