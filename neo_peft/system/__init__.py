"""The machine: files, the hub, hardware, signals. Nothing here knows of models or data.

files.py      write a file or a folder whole or not at all; JSON and tensors with clear errors
hub.py        one file of a hub repository as a local path
hardware.py   device, precision, threads, memory
signals.py    Ctrl-C and SIGTERM: they stop a command, or a run between two steps
"""
