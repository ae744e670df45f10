"""Operating system and hardware. Nothing here depends on models or data.

files.py         atomic writing of files and folders; reading of JSON and tensors
hub.py           download a file of a hub repository
hardware.py      device, precision, threads, peak memory
memory.py        how much memory a process can have
openmp.py        how the threads of torch wait for each other
bars.py          progress bars on standard error
freed_memory.py  keep freed memory for the next tensor
signals.py       Ctrl-C and SIGTERM: stop a command, or a run between two steps
exit_status.py   exit status and error line of a command
processes.py     what several processes share: gradients, numbers, objects
torchrun.py      start and end of the processes of torchrun
"""
