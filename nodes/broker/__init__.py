"""The broker's shell: sockets, clock and journal around the ledger, which decides everything.

Reading order: bodies (what rollouts carry), peers (who is connected), shell (instructions into
actions), loop (poll, drain, handle, send), __main__ (the process).
"""
