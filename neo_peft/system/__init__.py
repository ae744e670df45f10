"""The machine: files, the hub, hardware, how a command ends. Nothing here knows of models or data.

files.py         write a file or a folder whole or not at all; JSON and tensors with clear errors
hub.py           one file of a hub repository as a local path
hardware.py      device, precision, threads, memory
signals.py       Ctrl-C and SIGTERM: they stop a command, or a run between two steps
exit_status.py   how a command ends: one line and a status
torchrun.py      how several processes begin, and end together
"""
