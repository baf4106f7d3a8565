"""A stage worker: two processes, so that no handler can stop a heartbeat or a cancel.

The *guardian* speaks to the broker on the control socket: hello, heartbeats, leases, cancels. It
runs no handler code. The *host* is its child: it pulls work, runs the task kinds' handlers on one
asyncio loop, a slot each, and pushes results, so bulk data takes no extra hop. They share a table
of slots, and speak over a socket pair. A handler that blocks the loop, ignores its cancellation or
takes the process down costs one host: the guardian kills its process group at the handler's
deadline, tells the broker whose code was running, and starts a new host under a new worker_id; the
other rollouts are given to others without blame.

Reading order: pipe (what the two say), table (what is held and whose code runs), handlers (finding
them), attempt (one handler call), host, guardian, __main__.
"""
