"""A topology on a Slurm cluster: hosts are the nodes of an allocation, steps are its launchers.

Slurm places, starts, restarts and accounts for processes; nothing is found or ended by a name or a
port. In order of use: `script` writes a batch script, `allocation` asks Slurm, `placing` decides
which host is which node, `resolving` writes what each host starts from, `launcher` keeps a step up
for each host, `host` is what runs in a step, `journals` brings the journal to where it goes on.
"""
