"""What `doctor` looks at, one file for each family: the machine, the job, the ranks, the data, the disk, the speed.

A check is a small function that gives findings; what it looks at comes as arguments, so that each can be tried on a
machine that has not that trouble. `examination` calls them all.
"""
