"""The lab: the documented site as machines on a private network of one Linux host.

Rooms, in the order in which ``create`` walks through them:

- ``settings``: where a lab lives on disk, what its scenario asks for;
- ``hosts``: the machines' names and addresses, read from ``inventory/``;
- ``images``: base images, built once and cached;
- ``cgroups``: process groups by which every process of a lab is found again;
- ``network``: the private network and its way out;
- ``machine``: one machine's files, start, stop;
- ``supervisor``: the process that keeps one machine powered on;
- ``lab``: all of that in order; ``cli``: what a person types.

Nothing under ``roles/`` or ``playbooks/`` knows that any of this exists.
"""
